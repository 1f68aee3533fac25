//! The worker process.

use std::process::ExitCode;

fn main() -> ExitCode {
    coupon_system::worker::main()
}

//! The API process.

use std::process::ExitCode;

fn main() -> ExitCode {
    coupon_system::api::main()
}

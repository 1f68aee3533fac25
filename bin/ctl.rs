//! The operators' tool.

use std::process::ExitCode;

fn main() -> ExitCode {
    coupon_system::cli::main()
}

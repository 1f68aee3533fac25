//! The exit codes of the programs.

use std::process::ExitCode;

use crate::failure::{Fault, SetUpError};

/// Prints the error that ended a process, and returns its exit code: 0 ok, 1 failed, 2 usage, 3 threshold,
/// 4 invariant, 5 set-up.
pub fn exit(ended: anyhow::Result<()>) -> ExitCode {
    const FAILED: u8 = 1;
    const USAGE: u8 = 2;
    const THRESHOLD: u8 = 3;
    const INVARIANT: u8 = 4;
    const SET_UP: u8 = 5;
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Wrong usage that was found only after the work had begun.
            if let Some(usage) = error.downcast_ref::<clap::Error>() {
                eprint!("{usage}");
                return ExitCode::from(USAGE);
            }
            eprintln!("error: {error:#}");
            ExitCode::from(match error.downcast_ref::<Fault>() {
                Some(Fault::Threshold(_)) => THRESHOLD,
                Some(Fault::Invariant(_)) => INVARIANT,
                None if error.is::<SetUpError>() => SET_UP,
                None => FAILED,
            })
        }
    }
}

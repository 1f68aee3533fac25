//! The stream of accepted issuances: what an entry looks like, and reading it.
//!
//! An entry is appended by `reserve.lua`, delivered to one worker through the consumer group, and
//! deleted by `settle.lua`. It is never trimmed by length: it is a work queue.

pub mod entry;
mod reader;

pub use entry::{Entry, Undecodable};
pub use reader::{Read, Reader, Which};

//! Files that the user names for output.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use tempfile::TempPath;

/// What to do with a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExistingFile {
    Refuse,
    /// Leave its content, and write after it.
    Append,
}

/// Removes a file on drop, if [`open`] made it: a command that fails before it has written anything leaves no
/// empty file behind.
pub(super) struct NewFile(Option<TempPath>);

/// Opens the file at `path` for writing, and makes it if it is missing.
///
/// # Errors
///
/// If the file cannot be made or written, or is there and `existing` refuses it.
pub(super) fn open(path: &Path, existing: ExistingFile) -> io::Result<(File, NewFile)> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => Ok((file, NewFile(Some(TempPath::try_from_path(path)?)))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && existing == ExistingFile::Append => {
            // With `create`, for a link to a file that is missing.
            Ok((OpenOptions::new().append(true).create(true).open(path)?, NewFile(None)))
        }
        Err(error) => Err(error),
    }
}

impl NewFile {
    /// Leaves the file where it is: it holds what the user asked for, or a part of it.
    ///
    /// # Errors
    ///
    /// If the file cannot be kept.
    pub(super) fn keep(self) -> io::Result<()> {
        self.0.map_or(Ok(()), |path| path.keep().map(drop).map_err(Into::into))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_kept_goes_away_unless_it_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        drop(open(&path, ExistingFile::Refuse).unwrap());
        assert!(!path.exists());

        open(&path, ExistingFile::Append).unwrap().1.keep().unwrap();
        assert!(path.exists());
        std::fs::write(&path, "before").unwrap();
        drop(open(&path, ExistingFile::Append).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
        let refused = open(&path, ExistingFile::Refuse).err().map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::AlreadyExists));
    }
}

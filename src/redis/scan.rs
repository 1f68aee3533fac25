use redis::FromRedisValue;

use super::Partition;
use crate::Failure;

/// A scan of a hash or a set, a page at a time. A member that is there all the while is returned, perhaps more
/// than once.
pub(crate) struct KeyScan {
    command: &'static str,
    key: String,
    /// How many members of a page are asked for.
    page: usize,
    /// `None` at the end.
    cursor: Option<u64>,
}

impl KeyScan {
    /// A scan from the start by `command`, HSCAN or SSCAN.
    pub(crate) fn new(command: &'static str, key: String, page: usize) -> Self {
        KeyScan { command, key, page, cursor: Some(0) }
    }

    /// The next page; `None` at the end.
    pub(crate) async fn next<T: FromRedisValue>(
        &mut self,
        partition: &Partition,
        operation: &'static str,
    ) -> Result<Option<T>, Failure> {
        let Some(cursor) = self.cursor else { return Ok(None) };
        let mut scan = redis::cmd(self.command);
        scan.arg(&self.key).arg(cursor).arg("COUNT").arg(self.page);
        let (next, page): (u64, T) = partition.query(operation, &scan).await?;
        self.cursor = Some(next).filter(|next| *next != 0);
        Ok(Some(page))
    }
}

//! What a script answers.

use redis::Value;

use crate::Failure;

/// A script's reply, read from front to back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(super) operation: &'static str,
    pub(super) values: std::vec::IntoIter<Value>,
}

impl Reply {
    /// The next element, as bytes.
    pub(crate) fn bytes(&mut self) -> Result<Vec<u8>, Failure> {
        match self.values.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            Some(Value::SimpleString(text)) => Ok(text.into_bytes()),
            _ => Err(self.wrong()),
        }
    }

    /// The next element, as text.
    pub(crate) fn text(&mut self) -> Result<String, Failure> {
        String::from_utf8(self.bytes()?).map_err(|_| self.wrong())
    }

    /// The next element, as a number that is not negative.
    pub(crate) fn number(&mut self) -> Result<u64, Failure> {
        match self.values.next() {
            Some(Value::Int(number)) => u64::try_from(number).map_err(|_| self.wrong()),
            Some(Value::BulkString(bytes)) => std::str::from_utf8(&bytes)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| self.wrong()),
            _ => Err(self.wrong()),
        }
    }

    /// The next element, a list of its own.
    pub(crate) fn list(&mut self) -> Result<Reply, Failure> {
        match self.values.next() {
            Some(Value::Array(values)) => Ok(Reply { operation: self.operation, values: values.into_iter() }),
            _ => Err(self.wrong()),
        }
    }

    /// How many elements are left.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// The failure of a reply that is not of the shape its script promises.
    pub(crate) fn wrong(&self) -> Failure {
        Failure::Redis {
            operation: self.operation,
            source: "the script's reply has another shape than its contract says".into(),
        }
    }
}

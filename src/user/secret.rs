//! The secret that makes the ids of keyed issuances unguessable: 16 random bytes.
//!
//! A registered user has one of their own, in their document, and it goes with them: afterwards it is impossible to
//! compute which records were theirs. Where the caller's ids are trusted users have no document, and the
//! deployment has one for all of them.

use std::fmt;

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Document};

const BYTES: usize = 16;

/// A secret that the ids of keyed issuances are made with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdSecret([u8; BYTES]);

impl IdSecret {
    /// A new one.
    pub fn generate() -> Self {
        IdSecret(rand::random())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As it is kept in MongoDB.
    pub(crate) fn to_bson(self) -> Binary {
        Binary { subtype: BinarySubtype::Generic, bytes: self.0.to_vec() }
    }

    /// The one in a field of a document; `None` if there is none.
    ///
    /// # Errors
    /// If the field has another value: ids must not be made without the secret.
    pub(crate) fn of(document: &Document, field: &str) -> Result<Option<Self>, &'static str> {
        let Some(value) = document.get(field) else { return Ok(None) };
        let mongodb::bson::Bson::Binary(binary) = value else { return Err("its id secret is no binary") };
        let bytes = binary.bytes.as_slice().try_into().map_err(|_| "its id secret has the wrong length")?;
        Ok(Some(IdSecret(bytes)))
    }
}

impl fmt::Debug for IdSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdSecret(…)")
    }
}

//! The sender of a request, as far as it is known.

use crate::ids::UserId;

/// Who sends a request. The router puts one into every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Any caller of a process that asks for no credentials: everything is allowed.
    Open,
    /// A caller without credentials.
    Anonymous,
    /// An end user.
    User(UserId),
    /// A person or program with a key.
    Key { id: String, name: String, role: Role },
}

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Runs campaigns: everything.
    Operator,
    /// The shop's other systems: redeem, export, request for a user.
    Service,
    /// Reads, and changes nothing.
    Viewer,
}

impl Caller {
    /// Whether they may make requests about `user`; what keys may, their role says.
    pub(crate) fn may_speak_for(&self, user: &UserId) -> bool {
        match self {
            Caller::Open | Caller::Key { .. } => true,
            Caller::Anonymous => false,
            Caller::User(subject) => subject == user,
        }
    }
}

impl Role {
    /// All there are.
    pub const ALL: [Role; 3] = [Role::Operator, Role::Service, Role::Viewer];

    /// The name in records and commands.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Operator => "operator",
            Role::Service => "service",
            Role::Viewer => "viewer",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Role::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| "must be operator, service or viewer".into())
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Caller::Open => out.write_str("open"),
            Caller::Anonymous => out.write_str("anonymous"),
            Caller::User(user) => write!(out, "user {user}"),
            Caller::Key { id, name, .. } => write!(out, "key {id} ({name})"),
        }
    }
}

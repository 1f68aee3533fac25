//! Who may use a route.

use super::{Caller, Role};

/// For whom a route is. Every route has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Every caller, without credentials.
    Anyone,
    /// The user whom a request is for, and who acts for any user.
    Requesters,
    /// The user whom an answer is about, and every key.
    Readers,
    /// Who redeems what users hold.
    Redeemers,
    /// The shop's other systems, and every other key.
    Keys,
    /// Every caller on the operators' side, without credentials: pages, which a browser asks for without any, and which
    /// hold nothing themselves.
    OperatorPages,
    /// Who collects metrics: every key, on the operators' side.
    Scrapers,
    /// Who watches the service.
    Watchers,
    /// Who runs the service. What they change is recorded.
    Operators,
}

/// Whether a caller may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteAccess {
    Admitted,
    /// The caller is unknown.
    Unauthenticated,
    /// The caller is known, and may not.
    Forbidden,
}

impl Audience {
    /// Whether it asks for no credentials.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Audience::Anyone | Audience::OperatorPages)
    }

    /// Whether end users may use it; its handler must check whose record an answer is about.
    pub(crate) fn has_users(self) -> bool {
        self.is_open() || matches!(self, Audience::Requesters | Audience::Readers)
    }

    /// The keys that may use it.
    pub fn roles(self) -> &'static [Role] {
        use Role::{Operator, Service, Viewer};
        match self {
            Audience::Anyone
            | Audience::OperatorPages
            | Audience::Readers
            | Audience::Keys
            | Audience::Scrapers => &[Operator, Service, Viewer],
            Audience::Requesters | Audience::Redeemers => &[Operator, Service],
            Audience::Watchers => &[Operator, Viewer],
            Audience::Operators => &[Operator],
        }
    }

    /// Whether it is kept off the public listener where operators have one of their own.
    pub(crate) fn is_operators_side(self) -> bool {
        matches!(
            self,
            Audience::OperatorPages | Audience::Scrapers | Audience::Watchers | Audience::Operators
        )
    }

    /// Whether what is done there is recorded.
    pub(crate) fn is_recorded(self) -> bool {
        matches!(self, Audience::Redeemers | Audience::Operators)
    }

    /// Whether `caller` may use it.
    pub fn admits(self, caller: &Caller) -> RouteAccess {
        let may = match caller {
            _ if self.is_open() => true,
            Caller::Open => true,
            Caller::Anonymous => return RouteAccess::Unauthenticated,
            Caller::User(_) => self.has_users(),
            Caller::Key { role, .. } => self.roles().contains(role),
        };
        if may { RouteAccess::Admitted } else { RouteAccess::Forbidden }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Audience; 9] = [
        Audience::Anyone,
        Audience::OperatorPages,
        Audience::Requesters,
        Audience::Readers,
        Audience::Redeemers,
        Audience::Keys,
        Audience::Scrapers,
        Audience::Watchers,
        Audience::Operators,
    ];

    #[test]
    fn operators_may_everything_viewers_change_nothing_and_nobody_unknown_gets_in() {
        let key = |role| Caller::Key { id: "k".into(), name: "k".into(), role };
        for audience in ALL {
            assert_eq!(audience.admits(&Caller::Open), RouteAccess::Admitted);
            assert_eq!(audience.admits(&key(Role::Operator)), RouteAccess::Admitted);
            if !audience.is_open() {
                assert_eq!(audience.admits(&Caller::Anonymous), RouteAccess::Unauthenticated);
            }
            if audience.is_recorded() || audience == Audience::Requesters {
                assert_eq!(audience.admits(&key(Role::Viewer)), RouteAccess::Forbidden, "{audience:?}");
            } else {
                assert_eq!(audience.admits(&key(Role::Viewer)), RouteAccess::Admitted, "{audience:?}");
            }
            if !audience.is_open() && (audience.is_operators_side() || audience.is_recorded()) {
                let user = Caller::User("u1".parse().unwrap());
                assert_eq!(audience.admits(&user), RouteAccess::Forbidden, "{audience:?}");
            }
        }
    }
}

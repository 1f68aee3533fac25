//! Links in answers: absolute paths, under the path of the public URL.

use axum::http::uri::{Authority, Uri};

use crate::access::action::ActionId;
use crate::failure::SetUpError;
use crate::ids::{CouponId, IssuanceId, UserId};

/// Writes links.
pub(crate) struct Links {
    prefix: String,
    authority: Option<Authority>,
}

impl Links {
    /// Links under the path of `public_url`.
    ///
    /// # Errors
    /// `public_url` is no URL that links can begin with. The error does not repeat it: it may contain a password.
    pub fn new(public_url: Option<&str>) -> Result<Self, SetUpError> {
        let Some(url) = public_url else { return Ok(Links { prefix: String::new(), authority: None }) };
        let url = url.parse::<Uri>().ok().filter(|url| {
            let is_web = matches!(url.scheme_str(), Some("http" | "https"));
            is_web
                && url.query().is_none()
                && url.authority().is_some_and(|place| !place.as_str().contains('@'))
        });
        let wrong = "--public-url must be like https://shop.example/coupons, without user and password";
        let url = url.ok_or_else(|| SetUpError(vec![wrong.into()]))?;
        let prefix = url.path().trim_end_matches('/').to_owned();
        Ok(Links { prefix, authority: url.authority().cloned() })
    }

    /// The path of the public URL, without a slash at its end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Host and port of the public URL.
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// The link to a coupon.
    pub fn coupon(&self, id: &CouponId) -> String {
        format!("{}/coupons/{id}", self.prefix)
    }

    /// The link to a user.
    pub fn user(&self, id: &UserId) -> String {
        format!("{}/users/{id}", self.prefix)
    }

    /// The link to an issuance.
    pub fn issuance(&self, id: IssuanceId) -> String {
        format!("{}/issuances/{id}", self.prefix)
    }

    /// The link to an operator's action.
    pub fn action(&self, id: ActionId) -> String {
        format!("{}/operator-actions/{id}", self.prefix)
    }

    /// The link to a held unit.
    pub fn user_coupon(&self, user: &UserId, id: IssuanceId) -> String {
        format!("{}/user-coupons/{user}/{id}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_live_under_the_public_path() {
        let user: UserId = "u".parse().unwrap();
        for (url, link) in [
            (None, "/users/u"),
            (Some("https://shop.example"), "/users/u"),
            (Some("https://shop.example/api/"), "/api/users/u"),
        ] {
            assert_eq!(Links::new(url).unwrap().user(&user), link);
        }
        for wrong in
            ["no url", "shop.example", "https://shop.example/?a=b", "https://hong:hunter2@shop.example/"]
        {
            assert!(!Links::new(Some(wrong)).map(drop).unwrap_err().to_string().contains("hunter2"));
        }
    }
}

//! Where a web server may send a request on to.
//!
//! Many servers keep the bytes elsewhere. A request is anonymous, so it may follow to another host; but not to one that is
//! an address or this machine, which could be a service that trusts whoever is near, and never from TLS to none. In a cluster
//! each host has to be allowed as well.

use http::{Uri, header};
use url::{Host, Url};

use crate::transport::head::text;
use crate::transport::refusal::Refusal;

/// The address that a request for `from` is to be sent to instead, if it may be.
pub(super) fn follow(from: &Uri, refusal: &Refusal) -> Option<Uri> {
    if !matches!(refusal.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = text(&refusal.headers, header::LOCATION.as_str())?;
    target(from, location)
}

fn target(from: &Uri, location: &str) -> Option<Uri> {
    let from = Url::parse(&from.to_string()).ok()?;
    let mut to = from.join(location).ok()?;
    to.set_fragment(None);
    if !to.username().is_empty() || to.password().is_some() {
        return None;
    }
    let is_same = from.origin() == to.origin();
    let is_public = match to.host()? {
        Host::Domain(name) => name != "localhost" && !name.ends_with(".localhost"),
        Host::Ipv4(_) | Host::Ipv6(_) => false,
    };
    let may_leave = to.scheme() == "https" && from.scheme() == "https" && is_public;
    if is_same || may_leave {
        to.as_str().parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_followed_where_nobody_near_could_be_asked() {
        let follow = |from: &str, location: &str| {
            target(&from.parse().unwrap(), location).map(|uri| uri.to_string())
        };
        for (from, location, to) in [
            ("https://h/a", "/b?x=1#f", "https://h/b?x=1"),
            (
                "https://h/a",
                "https://cdn.example/b?sig=s",
                "https://cdn.example/b?sig=s",
            ),
            ("http://127.0.0.1:8000/a", "a/", "http://127.0.0.1:8000/a/"),
        ] {
            assert_eq!(follow(from, location).as_deref(), Some(to));
        }
        for (from, location) in [
            ("https://h/a", "http://h/a"),
            ("http://h/a", "http://other/a"),
            ("https://h/a", "https://169.254.169.254/latest"),
            ("https://h/a", "https://[::1]/"),
            ("https://h/a", "https://localhost/"),
            ("https://h/a", "https://x.localhost/"),
            ("https://h/a", "https://u:p@h/a"),
            ("https://h/a", "file:///etc/passwd"),
        ] {
            assert_eq!(follow(from, location), None, "{location}");
        }
    }
}

//! Redirects: S3 sends requests for a new bucket on to its region, other services to another of their hosts.
//!
//! A request carries a signature, which holds for one request, and a session token. It follows a redirect to the same
//! service alone: an answer must not be able to send it anywhere else. In a cluster that one has to be allowed, too
//! ([`Reach`](crate::sources::Reach)).

use http::Uri;
use url::Url;

use crate::sources::is_aws_s3;

/// The address that a request for `from` is to be sent to, if that is the same service.
pub(super) fn follow(from: &Uri, location: &str) -> Option<Uri> {
    let from = Url::parse(&from.to_string()).ok()?;
    let mut to = from.join(location).ok()?;
    to.set_fragment(None);
    let has_user = !to.username().is_empty() || to.password().is_some();
    if has_user || from.scheme() != to.scheme() || !is_same_service(&from, &to) {
        return None;
    }
    to.as_str().parse().ok()
}

fn is_same_service(from: &Url, to: &Url) -> bool {
    let (Some(from), Some(to)) = (from.host_str(), to.host_str()) else {
        return false;
    };
    let below = |host: &str, domain: &str| {
        host.strip_suffix(domain)
            .is_some_and(|rest| rest.ends_with('.'))
    };
    from == to || below(to, from) || (is_aws_s3(from) && is_aws_s3(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_followed_within_one_service_alone() {
        let follow = |from: &str, location: &str| {
            follow(&from.parse().unwrap(), location).map(|uri| uri.to_string())
        };
        let aws = "https://b.s3.us-east-1.amazonaws.com/a%20b?list-type=2";
        for (from, to) in [
            (
                aws,
                "https://b.s3.eu-west-1.amazonaws.com/a%20b?list-type=2",
            ),
            ("http://127.0.0.1:9000/b/k", "http://127.0.0.1:9001/b/k"),
            ("http://s3.example.com/b/k", "http://eu.s3.example.com/b/k"),
        ] {
            assert_eq!(follow(from, to).as_deref(), Some(to));
        }
        let relative = follow("http://h:9000/b/k", "/b2/k");
        assert_eq!(relative.as_deref(), Some("http://h:9000/b2/k"));
        for (from, to) in [
            (aws, "http://b.s3.eu-west-1.amazonaws.com/k"),
            (aws, "https://example.com/k"),
            (aws, "https://id.execute-api.us-east-1.amazonaws.com/k"),
            (aws, "https://b.s3.eu-west-1.amazonaws.com.evil.com/k"),
            (aws, "https://evilamazonaws.com/k"),
            (
                "http://s3.example.com/b/k",
                "http://evil-s3.example.com/b/k",
            ),
            ("http://s3.example.com/b/k", "http://169.254.169.254/latest"),
            ("http://h:9000/b/k", "http://user:pass@h:9000/b/k"),
            ("http://h:9000/b/k", "ftp://h/x"),
        ] {
            assert_eq!(follow(from, to), None, "{to}");
        }
    }
}

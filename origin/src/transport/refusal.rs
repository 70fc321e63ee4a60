//! An answer that is no success: what it means for the caller where no service's own words say more.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

use super::exchange::Answer;
use super::head::text;
use super::shown::{plain, shown};
use super::time;
use crate::error::OriginError;

/// Longest error document that is read, in bytes, and how long it is waited for.
const MAX_DOCUMENT: usize = 64 << 10;
const DOCUMENT_DEADLINE: Duration = Duration::from_secs(5);
/// No service is believed to want to be left alone for longer; no read waits for so long.
const MAX_AFTER: Duration = Duration::from_hours(48);

/// The status of an answer, and what else tells the cause. Of the document a service takes its code; its message is not
/// repeated, since it can repeat what was sent.
#[derive(Debug, Default)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// The service's word for it, if it has one.
    pub(crate) code: String,
    pub(crate) document: Vec<u8>,
    pub(crate) headers: HeaderMap,
}

/// What a request was about, in messages.
pub(crate) struct Asked<'a> {
    pub(crate) origin: &'a Arc<str>,
    pub(crate) target: Arc<str>,
    pub(crate) key: Option<&'a str>,
    /// What to do where the keys are refused.
    pub(crate) keys: &'static str,
    /// What kind of service was expected.
    pub(crate) service: &'static str,
}

impl Refusal {
    /// Reads the document of an answer, which need not have one.
    pub(crate) async fn read(answer: Answer) -> Self {
        let status = answer.status;
        let headers = answer.headers.clone();
        let read = tokio::time::timeout(DOCUMENT_DEADLINE, answer.document(MAX_DOCUMENT));
        let document = read.await.ok().and_then(Result::ok).unwrap_or_default();
        Self {
            status,
            code: String::new(),
            document,
            headers,
        }
    }

    /// With the service's word for it.
    pub(crate) fn with_code(self, code: impl Into<String>) -> Self {
        let code = code.into();
        Self { code, ..self }
    }

    /// Status and code in a message.
    pub(crate) fn detail(&self) -> String {
        let status = self.status.as_u16();
        match self.code.as_str() {
            "" => status.to_string(),
            code => format!("{status} {}", shown(code)),
        }
    }

    /// What it means by its status.
    pub(crate) fn explain(&self, asked: Asked<'_>) -> OriginError {
        let detail = self.detail();
        let Asked {
            origin,
            target,
            key,
            keys,
            service,
        } = asked;
        match (self.status.as_u16(), key) {
            (404 | 410 | 412 | 416, Some(key)) => OriginError::Changed {
                origin: origin.clone(),
                key: key.into(),
            },
            (404 | 410, None) => OriginError::BucketMissing {
                origin: origin.clone(),
            },
            (401 | 403, _) => OriginError::AccessDenied {
                target,
                detail,
                remedy: keys,
            },
            (429, _) => OriginError::Throttled {
                target,
                detail,
                after: retry_after(&self.headers),
            },
            (408 | 500 | 502..=504 | 506.., _) => match retry_after(&self.headers) {
                None => OriginError::Unavailable { target, detail },
                after => OriginError::Throttled {
                    target,
                    detail,
                    after,
                },
            },
            (407, _) => OriginError::Refused {
                target,
                problem: format!("the proxy answered {detail}"),
                remedy: "write its user and password into HTTP_PROXY or HTTPS_PROXY".into(),
            },
            (300..=399, _) => OriginError::Refused {
                target,
                problem: format!(
                    "it sends requests on to {} ({detail})",
                    plain(text(&self.headers, header::LOCATION.as_str()).unwrap_or_default())
                ),
                remedy: format!("name that address instead, if it is {service}"),
            },
            _ => OriginError::Refused {
                target,
                problem: format!("the service answered {detail}"),
                remedy: format!("check that it is {service}"),
            },
        }
    }
}

/// How long a service wants to be left alone (RFC 9110, 10.2.3): seconds, or a time. `None` when it does not say.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, header::RETRY_AFTER.as_str())?.trim();
    let after = match value.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => time::left(value),
    };
    after.map(|after| after.min(MAX_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, key: Option<&str>, headers: &[(&'static str, &str)]) -> &'static str {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let refusal = Refusal {
            status: StatusCode::from_u16(status).unwrap(),
            headers: map,
            ..Refusal::default()
        };
        let asked = Asked {
            origin: &"gs://b".into(),
            target: "gs://b/k".into(),
            key,
            keys: "check them",
            service: "a service",
        };
        refusal.explain(asked).kind()
    }

    #[test]
    fn a_status_becomes_what_the_caller_can_do() {
        for (status, of_key, of_origin) in [
            (404, "changed", "bucket_missing"),
            (412, "changed", "refused"),
            (416, "changed", "refused"),
            (401, "access_denied", "access_denied"),
            (403, "access_denied", "access_denied"),
            (429, "throttled", "throttled"),
            (503, "unavailable", "unavailable"),
            (500, "unavailable", "unavailable"),
            (501, "refused", "refused"),
            (302, "refused", "refused"),
            (400, "refused", "refused"),
        ] {
            assert_eq!(kind(status, Some("k"), &[]), of_key, "{status}");
            assert_eq!(kind(status, None, &[]), of_origin, "{status}");
        }
        let asks = [("retry-after", "7")];
        assert_eq!(kind(503, None, &asks), "throttled");
    }

    #[test]
    fn a_service_says_how_long_it_wants_to_be_left_alone() {
        let after = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Thu, 01 Jan 1970 00:00:05 GMT"), Some(Duration::ZERO));
        assert_eq!(after("18446744073709551615"), Some(MAX_AFTER));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}

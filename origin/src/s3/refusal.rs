//! An answer that is no success, and what it means for the caller.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::exchange::Answer;
use crate::error::OriginError;

/// Longest error document that is read, in bytes, and how long it is waited for.
const MAX_DOCUMENT: usize = 64 << 10;
const DOCUMENT_DEADLINE: Duration = Duration::from_secs(5);

/// Status and error code; the message is dropped, since it can repeat what was sent.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    code: String,
}

impl Refusal {
    pub(super) async fn read(answer: Answer) -> Self {
        #[derive(serde::Deserialize, Default)]
        #[serde(rename_all = "PascalCase", default)]
        struct Document {
            code: String,
        }
        let status = answer.status;
        // Services send it in chunks, without saying how long it is. Without it the status must do.
        let read = tokio::time::timeout(DOCUMENT_DEADLINE, answer.document(MAX_DOCUMENT));
        let body = read.await.ok().and_then(Result::ok).unwrap_or_default();
        let body = String::from_utf8_lossy(&body);
        let document: Document = quick_xml::de::from_str(&body).unwrap_or_default();
        Self {
            status,
            code: document.code,
        }
    }

    /// The refusal of an error document that came with the status of a success.
    pub(super) fn of_code(code: String) -> Self {
        let status = match code.as_str() {
            "InternalError" => StatusCode::INTERNAL_SERVER_ERROR,
            "ServiceUnavailable" | "SlowDown" => StatusCode::SERVICE_UNAVAILABLE,
            "AccessDenied"
            | "AllAccessDisabled"
            | "InvalidAccessKeyId"
            | "SignatureDoesNotMatch" => StatusCode::FORBIDDEN,
            _ => StatusCode::OK,
        };
        Self { status, code }
    }

    pub(super) fn is_expired(&self) -> bool {
        matches!(
            self.code.as_str(),
            "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired"
        )
    }

    /// Whether the service wants fewer requests, or less traffic: status 429, S3's codes, and OSS's `TotalQpsLimitExceeded`,
    /// `DownloadTrafficRateLimitExceeded` and the like. MinIO's `SlowDownRead` means that too few of its drives answer.
    fn asks_for_fewer(&self) -> bool {
        let code = self.code.as_str();
        self.status == StatusCode::TOO_MANY_REQUESTS
            || code.ends_with("LimitExceeded")
            || matches!(
                code,
                "SlowDown" | "Throttling" | "ThrottlingException" | "PartitionQpsLimitted"
            )
    }

    /// Whether the answer may have come from a region that does not hold the bucket.
    pub(super) fn may_be_another_region(&self) -> bool {
        matches!(
            self.status,
            StatusCode::MOVED_PERMANENTLY
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::BAD_REQUEST
                | StatusCode::FORBIDDEN
        )
    }

    /// The error of a request for `key`, or for the bucket itself.
    pub(super) fn explain(
        self,
        origin: &Arc<str>,
        target: Arc<str>,
        key: Option<&str>,
    ) -> OriginError {
        let status = self.status.as_u16();
        let detail = match self.code.as_str() {
            "" => status.to_string(),
            code => format!("{status} {code}"),
        };
        if self.is_expired() {
            return OriginError::CredentialsExpired { target, detail };
        }
        match (status, self.code.as_str(), key) {
            (_, "NoSuchBucket", _) | (404, _, None) => OriginError::BucketMissing {
                origin: origin.clone(),
            },
            (404, "NoSuchKey" | "NoSuchVersion", Some(key)) | (410 | 412 | 416, _, Some(key)) => {
                OriginError::Changed {
                    origin: origin.clone(),
                    key: key.into(),
                }
            }
            (404, _, Some(key)) => OriginError::NotFound {
                origin: origin.clone(),
                key: key.into(),
            },
            _ if self.asks_for_fewer() => OriginError::Throttled { target, detail },
            (408 | 500.., ..) | (_, "RequestTimeout", _) => {
                OriginError::Unavailable { target, detail }
            }
            (_, "RequestTimeTooSkewed", _) => OriginError::AccessDenied {
                target,
                detail,
                remedy: "set this machine's clock",
            },
            (401 | 403, ..) => OriginError::AccessDenied {
                target,
                detail,
                remedy: "check AWS_ACCESS_KEY_ID or --endpoint",
            },
            _ => OriginError::Config {
                origin: target,
                problem: format!("the service answered {detail}"),
                remedy: "check --endpoint, --region and --addressing".to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_and_a_code_become_what_the_caller_can_do() {
        let kind = |status: u16, code: &str, key: Option<&str>| {
            let refusal = Refusal {
                status: StatusCode::from_u16(status).unwrap(),
                code: code.to_owned(),
            };
            refusal
                .explain(&"s3://b".into(), "s3://b/k".into(), key)
                .kind()
        };
        assert_eq!(kind(404, "NoSuchBucket", Some("k")), "bucket_missing");
        assert_eq!(kind(404, "", None), "bucket_missing");
        assert_eq!(kind(404, "NoSuchKey", Some("k")), "changed");
        assert_eq!(kind(404, "", Some("k")), "not_found");
        assert_eq!(kind(412, "PreconditionFailed", Some("k")), "changed");
        assert_eq!(kind(403, "AccessDenied", Some("k")), "access_denied");
        assert_eq!(kind(400, "ExpiredToken", Some("k")), "credentials_expired");
        assert_eq!(kind(503, "SlowDown", None), "throttled");
        let limit = "DownloadTrafficRateLimitExceeded"; // OSS
        assert_eq!(kind(503, limit, Some("k")), "throttled");
        assert_eq!(kind(503, "SlowDownRead", Some("k")), "unavailable");
        assert_eq!(kind(503, "", None), "unavailable");
        assert_eq!(kind(400, "InvalidRequest", None), "config");
    }
}

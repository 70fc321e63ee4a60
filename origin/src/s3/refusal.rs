//! An answer that is no success, and what it means for the caller.

use std::sync::Arc;
use std::time::Duration;

use http::{StatusCode, header};

use crate::error::OriginError;
use crate::transport::exchange::Answer;
use crate::transport::head::text;
use crate::transport::refusal::retry_after;
use crate::transport::shown::{plain, shown};

/// Longest error document that is read, in bytes, and how long it is waited for.
const MAX_DOCUMENT: usize = 64 << 10;
const DOCUMENT_DEADLINE: Duration = Duration::from_secs(5);

/// Status, error code and what else tells the cause; the message is dropped, since it can repeat what was sent.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    code: String,
    /// The region that the service names.
    region: Option<String>,
    /// Where it sends the request instead.
    location: Option<String>,
    /// Another host that it names, without a scheme.
    endpoint: Option<String>,
    /// The storage class of an archived object.
    storage_class: String,
    /// It asks for the key that the object was encrypted with.
    wants_key: bool,
    /// It gives an object that KMS has the key of to signed requests over TLS alone.
    wants_kms: bool,
    /// How long it wants to be left alone.
    after: Option<Duration>,
}

impl Refusal {
    pub(super) async fn read(answer: Answer) -> Self {
        let status = answer.status;
        let header = |name: &str| text(&answer.headers, name).map(str::to_owned);
        let region = header("x-amz-bucket-region");
        let location = header(header::LOCATION.as_str());
        let after = retry_after(&answer.headers);
        // Services send it in chunks, without saying how long it is. Without it the status must do.
        let read = tokio::time::timeout(DOCUMENT_DEADLINE, answer.document(MAX_DOCUMENT));
        let body = read.await.ok().and_then(Result::ok).unwrap_or_default();
        Self {
            after,
            ..Self::of(status, region, location, &body)
        }
    }

    /// The refusal of an answer with this status, these headers and this document.
    fn of(
        status: StatusCode,
        region: Option<String>,
        location: Option<String>,
        document: &[u8],
    ) -> Self {
        #[derive(serde::Deserialize, Default)]
        #[serde(rename_all = "PascalCase", default)]
        struct Document {
            code: String,
            message: String,
            region: String,
            endpoint: String,
            storage_class: String,
        }
        let body = String::from_utf8_lossy(document);
        let document: Document = quick_xml::de::from_str(&body).unwrap_or_default();
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            status,
            code: document.code,
            region: region.or(given(document.region)).filter(|r| is_region(r)),
            location,
            endpoint: given(document.endpoint),
            storage_class: document.storage_class,
            wants_key: document
                .message
                .contains("a form of Server Side Encryption"),
            wants_kms: document
                .message
                .contains("Server Side Encryption with AWS KMS"),
            after: None,
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
        Self {
            status,
            code,
            ..Self::default()
        }
    }

    /// Whether the answer has an error document of S3.
    pub(super) fn has_code(&self) -> bool {
        !self.code.is_empty()
    }

    /// The region that the service names for the bucket.
    pub(super) fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// Where a request is sent instead, if it may be sent there as it is.
    pub(super) fn redirect(&self) -> Option<&str> {
        let follow = matches!(self.status.as_u16(), 301 | 302 | 307 | 308);
        self.location.as_deref().filter(|_| follow)
    }

    fn is_expired(&self) -> bool {
        matches!(
            self.code.as_str(),
            "ExpiredToken"
                | "ExpiredTokenException"
                | "TokenRefreshRequired"
                | "SecurityTokenExpired"
        )
    }

    /// Whether newer keys may do: these have expired, or the service does not know them, as some do not when they have.
    pub(super) fn may_be_of_old_keys(&self) -> bool {
        self.is_expired()
            || matches!(
                self.code.as_str(),
                "InvalidAccessKeyId" | "InvalidClientTokenId" | "InvalidToken" | "InvalidTokenId"
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
            code => format!("{status} {}", shown(code)),
        };
        if self.is_expired() {
            return OriginError::CredentialsExpired { target, detail };
        }
        let is_oss = origin.starts_with("oss:");
        let denied = |target, detail, remedy| OriginError::AccessDenied {
            target,
            detail,
            remedy: match remedy {
                _ if is_oss => {
                    "check OSS_ACCESS_KEY_ID, OSS_ACCESS_KEY_SECRET and OSS_SESSION_TOKEN, and what the user may read"
                }
                remedy => remedy,
            },
        };
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
            _ if self.asks_for_fewer() => OriginError::Throttled {
                target,
                detail,
                after: self.after,
            },
            (_, "RequestTimeTooSkewed", _) => denied(target, detail, "set this machine's clock"),
            (_, "SignatureDoesNotMatch", _) => {
                denied(target, detail, "check AWS_SECRET_ACCESS_KEY and --region")
            }
            (_, "InvalidToken" | "InvalidTokenId" | "InvalidClientTokenId", _) => denied(
                target,
                detail,
                "check AWS_SESSION_TOKEN, which belongs to AWS_ACCESS_KEY_ID",
            ),
            (_, code, _) if code.starts_with("KMS.") => denied(
                target,
                detail,
                "let these credentials use the KMS key of the object (kms:Decrypt)",
            ),
            (300..=399 | 407 | 501 | 505, ..) | (_, "InvalidObjectState", _) => {
                self.refused(target, &detail)
            }
            (408 | 500.., ..) | (_, "RequestTimeout", _) => match self.after {
                None => OriginError::Unavailable { target, detail },
                after => OriginError::Throttled {
                    target,
                    detail,
                    after,
                },
            },
            (401 | 403, ..) | (_, "InvalidAccessKeyId", _) => {
                denied(target, detail, "check AWS_ACCESS_KEY_ID or --endpoint")
            }
            _ => self.refused(target, &detail),
        }
    }

    /// An answer that will be the same next time.
    fn refused(&self, target: Arc<str>, detail: &str) -> OriginError {
        let elsewhere = self.location.as_ref().or(self.endpoint.as_ref());
        let (problem, remedy) = match (elsewhere, &self.region) {
            _ if self.code == "InvalidObjectState" => (
                format!("the object is archived ({})", shown(&self.storage_class)),
                "restore it (`aws s3api restore-object`), or copy it to another storage class"
                    .into(),
            ),
            _ if self.wants_key => (
                format!("the object is encrypted with its owner's own key, SSE-C ({detail})"),
                "name the file of its key in WEIR_SSE_C_KEY_FILE, or store it with SSE-S3 or SSE-KMS".into(),
            ),
            _ if self.wants_kms => (
                format!("the object is encrypted with SSE-KMS ({detail})"),
                "read it with keys, not with --anonymous, and over https://".into(),
            ),
            (Some(location), _) if self.status.is_redirection() => (
                format!("it sends requests on to {} ({detail})", plain(location)),
                "if that is the right service, name it with --endpoint".into(),
            ),
            (_, Some(region)) => (
                format!("the service answered {detail}"),
                format!("it names the region {region}: give that with --region"),
            ),
            _ if self.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED => (
                format!("the proxy answered {detail}"),
                "write its user and password into HTTP_PROXY or HTTPS_PROXY".into(),
            ),
            _ => (
                format!("the service answered {detail}"),
                "check that --endpoint is an S3 service, and --region and --addressing".into(),
            ),
        };
        OriginError::Refused {
            target,
            problem,
            remedy,
        }
    }
}

/// Whether a service's word for a region can be one.
fn is_region(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    !text.is_empty() && text.len() <= 64 && text.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_error_documents_of_any_bytes() {
        let document = "<?xml version=\"1.0\"?><Error><Code>PermanentRedirect</Code><Message>Use this.</Message><Region>eu-west-1</Region><Endpoint>b.s3.eu-west-1.amazonaws.com</Endpoint><StorageClass>GLACIER</StorageClass></Error>";
        weir_fuzz::Target::new("error-document")
            .seed(document)
            .seed("<Error><Code>InvalidObjectState</Code></Error>")
            .seed("<html><body>503</body></html>")
            .words(&[
                "<Code>",
                "</Code>",
                "<Region>",
                "<![CDATA[",
                "]]>",
                "<!--",
                "&lt;",
                "&#x1;",
                "<a>",
                "https://u@h:1/p?q#f",
                "@",
                "/",
                "?",
            ])
            .run(|document| {
                [301, 400, 403, 503].map(|status| {
                    let status = StatusCode::from_u16(status).unwrap();
                    let text = String::from_utf8_lossy(document).into_owned();
                    let refusal = Refusal::of(status, None, Some(text), document);
                    let code = refusal.code.len().min(40);
                    let error = refusal.explain(&"s3://b".into(), "s3://b/k".into(), Some("k"));
                    (error.kind(), code, error.to_string().lines().count().min(3))
                })
            });
    }

    #[test]
    fn a_status_and_a_code_become_what_the_caller_can_do() {
        let kind = |status: u16, code: &str, key: Option<&str>| {
            let refusal = Refusal {
                status: StatusCode::from_u16(status).unwrap(),
                code: code.to_owned(),
                ..Refusal::default()
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
        assert_eq!(kind(400, "InvalidRequest", None), "refused");
        for status in [301, 307, 405, 407, 418, 501, 505] {
            assert_eq!(kind(status, "", None), "refused", "{status}");
        }
        assert_eq!(kind(400, "InvalidToken", None), "access_denied");
        assert_eq!(
            kind(400, "KMS.DisabledException", Some("k")),
            "access_denied"
        );
    }

    #[test]
    fn the_advice_fits_the_cause() {
        let told = |refusal: Refusal| {
            let error = refusal.explain(&"s3://b".into(), "s3://b/k".into(), Some("k"));
            error.to_string()
        };
        let refusal = |status: u16, code: &str| Refusal {
            status: StatusCode::from_u16(status).unwrap(),
            code: code.to_owned(),
            ..Refusal::default()
        };
        let archived = told(Refusal {
            storage_class: "DEEP_ARCHIVE".to_owned(),
            ..refusal(403, "InvalidObjectState")
        });
        assert!(archived.contains("archived (DEEP_ARCHIVE)"), "{archived}");
        assert!(archived.contains("restore"), "{archived}");
        let encrypted = told(Refusal {
            wants_key: true,
            ..refusal(400, "InvalidRequest")
        });
        assert!(encrypted.contains("SSE-C"), "{encrypted}");
        let of_message = |message: &str| {
            let document =
                format!("<Error><Code>InvalidRequest</Code><Message>{message}</Message></Error>");
            told(Refusal::of(
                StatusCode::BAD_REQUEST,
                None,
                None,
                document.as_bytes(),
            ))
        };
        let told_of = of_message(
            "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object.",
        );
        assert!(told_of.contains("SSE-C"), "{told_of}");
        let told_of = of_message(
            "Requests specifying Server Side Encryption with AWS KMS managed keys require AWS Signature Version 4.",
        );
        assert!(
            told_of.contains("SSE-KMS") && told_of.contains("https://"),
            "{told_of}"
        );
        let elsewhere = told(Refusal {
            location: Some("https://user:hunter2@other.example/b/k?token=hunter2".to_owned()),
            ..refusal(307, "TemporaryRedirect")
        });
        assert!(
            elsewhere.contains("to https://other.example/b/k "),
            "{elsewhere}"
        );
        assert!(!elsewhere.contains("hunter2"), "{elsewhere}");
        let region = told(Refusal {
            region: Some("eu-nl-1".to_owned()),
            ..refusal(400, "AuthorizationHeaderMalformed")
        });
        assert!(
            region.contains("--region") && region.contains("eu-nl-1"),
            "{region}"
        );
        let odd = told(refusal(400, "a\nb"));
        assert!(!odd.contains('\n'), "{odd}");
    }
}

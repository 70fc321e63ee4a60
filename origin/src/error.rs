//! What goes wrong with an origin, by what the caller can do about it.
//!
//! Every message names the bucket or the object, says what happened and what to do. None holds a secret: of an
//! answer only the status, the error code and the request id are kept.

use std::sync::Arc;
use std::time::Duration;

use weir_core::OriginId;

/// Why an origin could not be opened, listed or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OriginError {
    /// The URL, an option, a profile or a certificate is wrong. Final.
    #[error("origin {origin}: {problem}; {remedy}")]
    Config {
        /// The origin's URL.
        origin: Arc<str>,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The origin refused the credentials, or the process may not read the file. Final.
    #[error("origin {target}: access denied ({detail}); {remedy}")]
    AccessDenied {
        /// The bucket, object or file.
        target: Arc<str>,
        /// Status and code of the answer.
        detail: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The credentials have expired, and loading them again gave none that work. Final.
    #[error(
        "origin {target}: the credentials have expired ({detail}); renew them, the next request reads them again"
    )]
    CredentialsExpired {
        /// The bucket or object.
        target: Arc<str>,
        /// Status and code of the answer.
        detail: String,
    },
    /// This process does not read such sources, or has no credentials that are meant for them. Final.
    #[error("origin {target}: {problem}; {remedy}")]
    NotAllowed {
        /// The bucket or directory.
        target: Arc<str>,
        /// What is not allowed to which process.
        problem: String,
        /// Which flag of that process allows it.
        remedy: String,
    },
    /// There is no such bucket or directory. Final.
    #[error("origin {origin}: it does not exist; check {}", said_by(.origin).name)]
    BucketMissing {
        /// The origin's URL.
        origin: Arc<str>,
    },
    /// The origin knows nothing at the object's address. Final.
    #[error("origin {origin}: nothing is found at {key:?}; check {}", said_by(.origin).objects)]
    NotFound {
        /// The origin's URL.
        origin: Arc<str>,
        /// The object's key.
        key: Arc<str>,
    },
    /// The object is no longer the version that was listed: replaced, cut or deleted. Final.
    #[error(
        "origin {origin}: object {key:?} has changed since it was listed; run `weir dataset refresh`"
    )]
    Changed {
        /// The origin's URL.
        origin: Arc<str>,
        /// The object's key.
        key: Arc<str>,
    },
    /// The bytes do not match the checksum that the origin sent, again and again.
    #[error(
        "origin {origin}: the bytes of {key:?} do not match the origin's checksum; check the network and proxies between, or upload the object again"
    )]
    Corrupt {
        /// The origin's URL.
        origin: Arc<str>,
        /// The object's key.
        key: Arc<str>,
    },
    /// The answer is not what was asked for: too short or too long, another part, unpacked on the way, no listing.
    /// Passes if a proxy or a server of many is at fault; asked for again a few times, soon after each other.
    #[error(
        "origin {target}: the answer is not what was asked for ({detail}); check {}, and that no proxy or setting of the service changes or unpacks what is stored",
        said_by(.target).address
    )]
    Malformed {
        /// The bucket or object.
        target: Arc<str>,
        /// What is wrong with it.
        detail: String,
    },
    /// The origin asks for fewer requests. Passes.
    #[error(
        "origin {target}: too many requests ({detail}); lower the load or ask for a higher limit"
    )]
    Throttled {
        /// The bucket or object.
        target: Arc<str>,
        /// Status and code of the answer.
        detail: String,
        /// How long it wants to be left alone (`Retry-After`), if it says so.
        after: Option<Duration>,
    },
    /// A server error, a lost connection or an incomplete answer. Passes.
    #[error(
        "origin {target}: not available ({detail}); check the service and {}",
        said_by(.target).address
    )]
    Unavailable {
        /// The bucket or object.
        target: Arc<str>,
        /// Status and code of the answer, or the transport's message.
        detail: String,
    },
    /// Nothing arrived for so long. Passes.
    #[error(
        "origin {target}: no answer for {after:.1?}; check the service and {}",
        said_by(.target).address
    )]
    Timeout {
        /// The bucket or object.
        target: Arc<str>,
        /// How long was waited.
        after: Duration,
    },
    /// The origin or the object is of a kind that cannot be read. Final.
    #[error("origin {target}: {problem}")]
    Unsupported {
        /// The bucket or object.
        target: Arc<str>,
        /// What cannot be done, and the remedy.
        problem: String,
    },
    /// The origin answered that it does not do this: another kind of service, a redirect, an archived object. Final.
    #[error("origin {target}: {problem}; {remedy}")]
    Refused {
        /// The bucket or object.
        target: Arc<str>,
        /// What it refused.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The origin's certificate is not one that this machine trusts. Final.
    #[error(
        "origin {target}: its certificate is not trusted ({detail}); check the name in {}, or add its authority to the system's certificates, or to a file that WEIR_CA_BUNDLE, AWS_CA_BUNDLE or SSL_CERT_FILE names",
        said_by(.target).address
    )]
    Untrusted {
        /// The bucket or object.
        target: Arc<str>,
        /// What the check of the certificate found.
        detail: String,
    },
    /// The name servers say that there is no such host. Passes where the origin has answered before: the names of
    /// services come and go with them.
    #[error(
        "origin {target}: there is no host {host:?}; check {}, and the name servers of this machine",
        said_by(.target).host
    )]
    NoSuchHost {
        /// The bucket or object.
        target: Arc<str>,
        /// The name that was looked up.
        host: Arc<str>,
    },
    /// This process may not open another file or connection. Passes.
    #[error(
        "origin {target}: this process has no file descriptor left for a connection ({detail}); raise its limit (`ulimit -n`, LimitNOFILE= of a service)"
    )]
    NoDescriptors {
        /// The bucket or object.
        target: Arc<str>,
        /// The system's message.
        detail: String,
    },
    /// A read beyond the end of the object: an error of the caller. Final.
    #[error("origin {target}: bytes {start}..{end} are not inside the object of {size} bytes")]
    OutOfRange {
        /// The object.
        target: Arc<str>,
        /// First byte asked for.
        start: u64,
        /// End of the bytes asked for.
        end: u64,
        /// Length of the object.
        size: u64,
    },
    /// The read was given up because this process is shutting down. Final.
    #[error("the read of {key:?} was interrupted by a shutdown; read again")]
    Interrupted {
        /// The object's key.
        key: Arc<str>,
    },
    /// No known dataset has an origin with this id. Final.
    #[error("origin {id} is not known here; check that its dataset still exists")]
    Unknown {
        /// The id.
        id: OriginId,
    },
    /// An error that usually passes stayed until the retries were used up. Final.
    #[error("{last} (given up after {attempts} failed requests in {after:.1?})")]
    GaveUp {
        /// The last error.
        last: Arc<OriginError>,
        /// Failed requests.
        attempts: u32,
        /// Time lost to them.
        after: Duration,
    },
}

/// What says where an origin is, for messages.
struct SaidBy {
    /// Where its service is.
    address: &'static str,
    /// The name of its service's host.
    host: &'static str,
    /// Which bucket or directory it is.
    name: &'static str,
    /// Where its objects are.
    objects: &'static str,
}

/// What says where the origin is that a message is about: an option, or its URL alone.
fn said_by(target: &str) -> &'static SaidBy {
    const HADOOP: &str = "the address in the URL, or that of HADOOP_CONF_DIR (fs.defaultFS, dfs.namenode.rpc-address)";
    match target.split_once(':').map(|(scheme, _)| scheme) {
        Some("hdfs") => &SaidBy {
            address: HADOOP,
            host: HADOOP,
            name: "the path and the address in the URL",
            objects: "the path and the address in the URL",
        },
        Some("http" | "https") => &SaidBy {
            address: "the URL",
            host: "the URL",
            name: "the URL",
            objects: "the URL",
        },
        Some("file") => &SaidBy {
            address: "the directory",
            host: "the directory",
            name: "the directory",
            objects: "the directory",
        },
        // These refuse the other options.
        Some("gs") => &SaidBy {
            address: "--endpoint",
            host: "--endpoint",
            name: "the name and --endpoint",
            objects: "--endpoint",
        },
        Some("az" | "abfss") => &SaidBy {
            address: "the account and --endpoint",
            host: "the account and --endpoint",
            name: "the container's name, the account and --endpoint",
            objects: "--endpoint",
        },
        _ => &SaidBy {
            address: "--endpoint",
            host: "--endpoint, --region and --addressing",
            name: "the name, --endpoint and --region",
            objects: "--endpoint and --addressing",
        },
    }
}

/// What says where the service of an origin is: an option, or its URL alone.
pub(crate) fn address_said_by(target: &str) -> &'static str {
    said_by(target).address
}

impl OriginError {
    /// Every value of [`kind`](Self::kind).
    pub(crate) const KINDS: [&'static str; 20] = [
        "config",
        "access_denied",
        "credentials_expired",
        "not_allowed",
        "bucket_missing",
        "not_found",
        "changed",
        "corrupt",
        "malformed",
        "throttled",
        "unavailable",
        "timeout",
        "unsupported",
        "refused",
        "untrusted",
        "no_such_host",
        "no_descriptors",
        "out_of_range",
        "interrupted",
        "unknown",
    ];
    /// Kinds of errors that may pass.
    pub(crate) const RETRYABLE_KINDS: [&'static str; 7] = [
        "corrupt",
        "malformed",
        "throttled",
        "unavailable",
        "timeout",
        "no_such_host",
        "no_descriptors",
    ];

    /// The error of a read that a shutdown cut short.
    pub fn interrupted(key: &str) -> Self {
        Self::Interrupted { key: key.into() }
    }

    /// The error of a read from an origin that no known dataset names.
    pub fn unknown(id: OriginId) -> Self {
        Self::Unknown { id }
    }

    /// A configuration error.
    pub(crate) fn config(
        origin: impl Into<Arc<str>>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Config {
            origin: origin.into(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// The error of a request without a signature, which no keys can help.
    pub(crate) fn of_anonymous(self) -> Self {
        match self {
            Self::AccessDenied { target, detail, .. } => Self::AccessDenied {
                target,
                detail,
                remedy: "it is read without keys (--anonymous): leave that out, unless everybody may list and read it",
            },
            other => other,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Throttled { .. }
                | Self::Unavailable { .. }
                | Self::Timeout { .. }
                | Self::NoSuchHost { .. }
        ) || self.passes_soon_or_never()
    }

    /// Whether it is of no use to wait long: the origin did answer, but wrongly, or this process cannot ask.
    pub(crate) fn passes_soon_or_never(&self) -> bool {
        matches!(
            self,
            Self::Corrupt { .. } | Self::Malformed { .. } | Self::NoDescriptors { .. }
        )
    }

    /// How long the origin wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { after, .. } => *after,
            _ => None,
        }
    }

    /// Whether it is final as long as the origin has never answered: its address is wrong then.
    pub(crate) fn is_final_at_first(&self) -> bool {
        matches!(self, Self::NoSuchHost { .. })
    }

    /// The kind of error, as a label of metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Config { .. } => "config",
            Self::AccessDenied { .. } => "access_denied",
            Self::CredentialsExpired { .. } => "credentials_expired",
            Self::NotAllowed { .. } => "not_allowed",
            Self::BucketMissing { .. } => "bucket_missing",
            Self::NotFound { .. } => "not_found",
            Self::Changed { .. } => "changed",
            Self::Corrupt { .. } => "corrupt",
            Self::Malformed { .. } => "malformed",
            Self::Throttled { .. } => "throttled",
            Self::Unavailable { .. } => "unavailable",
            Self::Timeout { .. } => "timeout",
            Self::Unsupported { .. } => "unsupported",
            Self::Refused { .. } => "refused",
            Self::Untrusted { .. } => "untrusted",
            Self::NoSuchHost { .. } => "no_such_host",
            Self::NoDescriptors { .. } => "no_descriptors",
            Self::OutOfRange { .. } => "out_of_range",
            Self::Interrupted { .. } => "interrupted",
            Self::Unknown { .. } => "unknown",
            Self::GaveUp { last, .. } => last.kind(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_failed_on_what_and_what_to_do() {
        let error = OriginError::AccessDenied {
            target: "s3://b/p".into(),
            detail: "403".to_owned(),
            remedy: "check AWS_ACCESS_KEY_ID or --endpoint",
        };
        assert_eq!(
            error.to_string(),
            "origin s3://b/p: access denied (403); check AWS_ACCESS_KEY_ID or --endpoint"
        );
    }

    #[test]
    fn the_remedy_names_what_says_where_this_kind_of_origin_is() {
        for (url, names, names_not) in [
            ("s3://b/p", "--endpoint", "HADOOP"),
            ("az://c", "--endpoint", "HADOOP"),
            ("gs://b", "--endpoint", "--region"),
            ("hdfs://nn:8020/d", "HADOOP_CONF_DIR", "--endpoint"),
            ("hdfs://service", "address in the URL", "--endpoint"),
            ("https://host/d/", "the URL", "--endpoint"),
        ] {
            let target: Arc<str> = url.into();
            let unavailable = OriginError::Unavailable {
                target: target.clone(),
                detail: "connection refused".to_owned(),
            };
            let late = OriginError::Timeout {
                target: target.clone(),
                after: Duration::from_secs(5),
            };
            for error in [unavailable, late] {
                let text = error.to_string();
                assert!(text.contains(names) && !text.contains(names_not), "{text}");
            }
            let no_host = OriginError::NoSuchHost {
                target: target.clone(),
                host: "nn".into(),
            };
            let missing = OriginError::BucketMissing { origin: target };
            for error in [no_host, missing] {
                let text = error.to_string();
                assert!(!text.contains(names_not), "{text}");
                assert_eq!(text.contains("--endpoint"), names == "--endpoint", "{text}");
            }
        }
    }

    #[test]
    fn who_reads_without_keys_is_not_told_to_check_them() {
        let denied = OriginError::AccessDenied {
            target: "s3://b/p".into(),
            detail: "403".to_owned(),
            remedy: "check AWS_ACCESS_KEY_ID or --endpoint",
        };
        let text = denied.of_anonymous().to_string();
        assert!(
            text.contains("(403)") && text.contains("--anonymous"),
            "{text}"
        );
        assert!(!text.contains("AWS_ACCESS_KEY_ID"), "{text}");
        let missing = OriginError::BucketMissing {
            origin: "s3://b".into(),
        };
        assert_eq!(missing.of_anonymous().kind(), "bucket_missing");
    }

    #[test]
    fn an_error_that_was_retried_in_vain_keeps_its_kind_and_is_final() {
        let last = OriginError::Timeout {
            target: "s3://b/p".into(),
            after: Duration::from_secs(1),
        };
        assert!(last.is_retryable());
        let gave_up = OriginError::GaveUp {
            last: last.into(),
            attempts: 3,
            after: Duration::from_secs(30),
        };
        assert_eq!(gave_up.kind(), "timeout");
        assert!(!gave_up.is_retryable());
        assert!(
            gave_up
                .to_string()
                .ends_with("(given up after 3 failed requests in 30.0s)")
        );
    }

    #[test]
    fn kinds_are_listed_and_those_that_pass_among_them() {
        let error = OriginError::interrupted("k");
        assert!(OriginError::KINDS.contains(&error.kind()));
        for kind in OriginError::RETRYABLE_KINDS {
            assert!(OriginError::KINDS.contains(&kind), "{kind}");
        }
    }
}

//! Why an exchange failed, and what that means for the caller: most errors of a connection pass, some never do.

use std::io;
use std::sync::Arc;

use super::connect::{CONNECT_DEADLINE, ProxyUnusable};
use super::names::NoSuchHost;
use crate::error::{OriginError, address_said_by};
use crate::sources::Forbidden;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// No connection was made.
    #[error("{}", root_cause(.0.as_ref()))]
    Connect(Box<dyn std::error::Error + Send + Sync>),
    /// No connection was made in time.
    #[error("no connection within {CONNECT_DEADLINE:?}")]
    ConnectTimeout,
    /// The connection broke, or the answer makes no sense.
    #[error("{}", root_cause(.0))]
    Exchange(#[from] hyper::Error),
    /// The request cannot be written down.
    #[error("{0}")]
    Request(#[from] http::Error),
    /// The body is longer than its kind ever is.
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    /// The connection was closed in the middle.
    #[error("the connection was closed")]
    Closed,
}

impl HttpError {
    /// What it means for the caller. Most errors of a connection pass.
    pub(crate) fn explain(self, target: Arc<str>) -> OriginError {
        let detail = self.to_string();
        if let Some(NoSuchHost(host)) = self.source_of() {
            let host = host.clone();
            return OriginError::NoSuchHost { target, host };
        }
        if let Some(forbidden) = self.source_of::<Forbidden>() {
            return forbidden.clone().of(target);
        }
        match self.cause() {
            Cause::Descriptors => OriginError::NoDescriptors { target, detail },
            Cause::Certificate => OriginError::Untrusted { target, detail },
            Cause::NoTls => OriginError::Refused {
                problem: format!("no connection with TLS can be made ({detail})"),
                remedy: format!(
                    "check whether {} is http:// or https://",
                    address_said_by(&target)
                ),
                target,
            },
            Cause::Proxy => OriginError::Refused {
                target,
                problem: detail,
                remedy: "check HTTPS_PROXY and HTTP_PROXY".to_owned(),
            },
            Cause::Answer => OriginError::Malformed { target, detail },
            Cause::Forbidden | Cause::Other => OriginError::Unavailable { target, detail },
        }
    }

    /// Whether a service may fail so that speaks with TLS where its address does not say so, or the other way round.
    pub(crate) fn may_be_another_scheme(&self) -> bool {
        match self {
            // Without TLS some wait for the end of a line in the greeting.
            Self::Exchange(_) | Self::Closed | Self::ConnectTimeout => true,
            Self::Connect(_) => self.cause() == Cause::Other,
            _ => false,
        }
    }

    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Exchange(error) if error.is_parse() => return Cause::Answer,
            Self::TooLong(_) => return Cause::Answer,
            _ => {}
        }
        let mut causes = self.chain().map(|error| {
            if error.is::<ProxyUnusable>() {
                Cause::Proxy
            } else if error.is::<Forbidden>() {
                Cause::Forbidden
            } else if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                of_tls(tls)
            } else if let Some(system) = error.downcast_ref::<io::Error>() {
                of_system(system)
            } else {
                Cause::Other
            }
        });
        causes
            .find(|cause| *cause != Cause::Other)
            .unwrap_or(Cause::Other)
    }

    /// The error of type `E` that it comes from, if there is one.
    pub(crate) fn source_of<E: std::error::Error + 'static>(&self) -> Option<&E> {
        self.chain().find_map(|error| error.downcast_ref())
    }

    /// The errors that it comes from, from the outermost on.
    fn chain(&self) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
        let first = match self {
            Self::Connect(error) => Some(&**error as &(dyn std::error::Error + 'static)),
            other => std::error::Error::source(other),
        };
        std::iter::successors(first, |error| {
            let system = error.downcast_ref::<io::Error>();
            // The source of a system's error is that of the error within, which may be another of its kind.
            match system.and_then(io::Error::get_ref) {
                Some(within) => Some(within),
                None => error.source(),
            }
        })
    }
}

/// Why an exchange failed, as far as it makes a difference to the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    /// No descriptor is left.
    Descriptors,
    /// The certificate is not trusted.
    Certificate,
    /// The other side has no TLS, or none that fits.
    NoTls,
    /// The proxy is of a kind that cannot be used.
    Proxy,
    /// This process may not connect there.
    Forbidden,
    /// What came is no answer.
    Answer,
    Other,
}

fn of_tls(error: &rustls::Error) -> Cause {
    use rustls::{AlertDescription as Alert, Error, InvalidMessage};
    match error {
        Error::InvalidCertificate(_) => Cause::Certificate,
        Error::InvalidMessage(InvalidMessage::InvalidContentType)
        | Error::PeerIncompatible(_)
        | Error::AlertReceived(
            Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::UnrecognisedName,
        ) => Cause::NoTls,
        _ => Cause::Other,
    }
}

fn of_system(error: &io::Error) -> Cause {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => Cause::Descriptors,
        _ => Cause::Other,
    }
}

/// The innermost cause of an error, which tells most.
fn root_cause(mut error: &(dyn std::error::Error + 'static)) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use rustls::{CertificateError, Error, InvalidMessage};

    use super::*;

    fn connect(error: impl std::error::Error + Send + Sync + 'static) -> &'static str {
        HttpError::Connect(error.into())
            .explain("s3://b".into())
            .kind()
    }

    #[test]
    fn a_wrong_scheme_is_said_to_be_where_it_is_written() {
        for (origin, named) in [("s3://b", "--endpoint"), ("https://host/d/", "the URL")] {
            let plain = Error::InvalidMessage(InvalidMessage::InvalidContentType);
            let error = HttpError::Connect(plain.into()).explain(origin.into());
            let remedy = format!("check whether {named} is http:// or https://");
            assert!(error.to_string().ends_with(&remedy), "{error}");
        }
    }

    #[test]
    fn what_never_passes_is_told_from_what_does() {
        let tls = |error: Error| {
            let once = io::Error::new(io::ErrorKind::InvalidData, error);
            connect(io::Error::other(once))
        };
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert_eq!(tls(unknown.clone()), "untrusted");
        assert_eq!(connect(unknown), "untrusted");
        let plain = Error::InvalidMessage(InvalidMessage::InvalidContentType);
        assert_eq!(tls(plain), "refused");
        assert_eq!(tls(Error::DecryptError), "unavailable");
        let system = |code| connect(io::Error::from_raw_os_error(code));
        assert_eq!(system(libc::EMFILE), "no_descriptors");
        assert_eq!(system(libc::ECONNREFUSED), "unavailable");
    }
}

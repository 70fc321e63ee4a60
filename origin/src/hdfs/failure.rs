//! What an error of the cluster means for the caller: whether it passes, and what to do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hdfs_native::HdfsError;

use crate::error::OriginError;
use crate::sources::Forbidden;
use crate::transport::names::NoSuchHost;

/// Longest text of a server that is repeated.
const MAX_TEXT: usize = 300;

/// Why a call or a read failed.
#[derive(Debug)]
pub(super) enum Failed {
    Client(HdfsError),
    /// Nothing came for so long.
    Silent(Duration),
}

/// Whether the NameNode answered that nothing is at the path.
pub(super) fn is_missing(error: &HdfsError) -> bool {
    match error {
        HdfsError::FileNotFound(_) | HdfsError::BlocksNotFound(_) => true,
        HdfsError::RPCError(class, _) => matches!(
            short(class),
            "FileNotFoundException" | "UnresolvedPathException" | "ParentNotDirectoryException"
        ),
        _ => false,
    }
}

/// The error for the caller. `refused` is why a DataNode was not connected to.
pub(super) fn explain(failed: Failed, target: Arc<str>, refused: Option<Forbidden>) -> OriginError {
    let error = match failed {
        Failed::Silent(after) => return OriginError::Timeout { target, after },
        Failed::Client(error) => error,
    };
    let unavailable = |target, detail: String| OriginError::Unavailable {
        target,
        detail: cut(&detail),
    };
    match error {
        HdfsError::IOError(error) => of_system(&error, target),
        HdfsError::RPCError(class, text) | HdfsError::FatalRPCError(class, text) => {
            of_server(&class, &text, target)
        }
        HdfsError::DataTransferError(text) => match refused {
            Some(refused) => refused.of(target),
            None => unavailable(target, text),
        },
        HdfsError::GSSAPIError(_, _, text) => of_kerberos(&text, target),
        HdfsError::SASLError(text) => denied(target, &text, KERBEROS),
        HdfsError::NoSASLMechanism => denied(target, "no way to log in that both know", KERBEROS),
        HdfsError::OperationFailed(text) if text.contains("libgssapi") => OriginError::config(
            target,
            "the cluster asks for Kerberos, and this machine lacks the library for it (libgssapi_krb5.so.2)",
            "install it: apt-get install libgssapi-krb5-2, or krb5-libs where packages are RPMs",
        ),
        HdfsError::UnsupportedFeature(_) => OriginError::Unsupported {
            target,
            problem:
                "the file is in an encryption zone, which cannot be read; copy it out of the zone"
                    .to_owned(),
        },
        HdfsError::UnsupportedErasureCodingPolicy(policy) => OriginError::Unsupported {
            target,
            problem: format!(
                "its erasure coding ({}) cannot be read; copy it to a replicated directory",
                cut(&policy)
            ),
        },
        HdfsError::UrlParseError(_)
        | HdfsError::InvalidArgument(_)
        | HdfsError::XmlParseError(_) => OriginError::config(
            target,
            cut(&error.to_string()),
            "check the URL and the options",
        ),
        HdfsError::InvalidRPCResponse(_) => not_a_namenode(target),
        other => unavailable(target, other.to_string()),
    }
}

const KERBEROS: &str = "check the ticket (`klist`), or the keytab that KRB5_CLIENT_KTNAME names, and hadoop.security.authentication";
const PERMISSION: &str =
    "let the user read it, or name another one (HADOOP_USER_NAME, or the source's user)";

fn denied(target: Arc<str>, detail: &str, remedy: &'static str) -> OriginError {
    OriginError::AccessDenied {
        target,
        detail: cut(detail),
        remedy,
    }
}

fn not_a_namenode(target: Arc<str>) -> OriginError {
    OriginError::Refused {
        target,
        problem: "what answers there is no NameNode".to_owned(),
        remedy: "write the port of its RPC, usually 8020 or 9000, not that of its web page"
            .to_owned(),
    }
}

fn of_system(error: &io::Error, target: Arc<str>) -> OriginError {
    let within = error.get_ref();
    if let Some(forbidden) = within.and_then(|e| e.downcast_ref::<Forbidden>()) {
        return forbidden.clone().of(target);
    }
    if let Some(NoSuchHost(host)) = within.and_then(|e| e.downcast_ref::<NoSuchHost>()) {
        let host = host.clone();
        return OriginError::NoSuchHost { target, host };
    }
    let detail = cut(&error.to_string());
    match (error.kind(), error.raw_os_error()) {
        (_, Some(libc::EMFILE | libc::ENFILE)) => OriginError::NoDescriptors { target, detail },
        (io::ErrorKind::InvalidData, _) => not_a_namenode(target),
        // The same end of a connection, by which of the two sides saw it at which moment.
        (
            io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe,
            _,
        ) => OriginError::Unavailable {
            target,
            detail: "the connection was closed without an answer".to_owned(),
        },
        _ => OriginError::Unavailable { target, detail },
    }
}

/// An exception of a server, by its class.
fn of_server(class: &str, text: &str, target: Arc<str>) -> OriginError {
    let class = short(class);
    // The first line says what happened, the others where in the server.
    let text = text.lines().next().unwrap_or_default();
    let detail = cut(&format!("{class}: {text}"));
    match class {
        "AccessControlException" if text.contains("SIMPLE authentication is not enabled") => {
            denied(
                target,
                "the cluster asks for Kerberos",
                "set hadoop.security.authentication to kerberos (HADOOP_CONF_DIR, or the source's options)",
            )
        }
        "AccessControlException" | "AuthorizationException" => denied(target, text, PERMISSION),
        "InvalidToken" | "SecretManager$InvalidToken" | "SaslException" | "GSSException" => {
            denied(target, text, KERBEROS)
        }
        "RpcNoSuchProtocolException"
        | "RpcServerException"
        | "RPC$VersionMismatch"
        | "RpcException" => not_a_namenode(target),
        "RpcNoSuchMethodException" => OriginError::Unsupported {
            target,
            problem:
                "the NameNode does not know all that Weir asks; it must be of Hadoop 3.1 or newer"
                    .to_owned(),
        },
        "StandbyException" => OriginError::Unavailable {
            target,
            detail: "no NameNode is active, those that answer are in standby".to_owned(),
        },
        "InvalidPathException" => OriginError::Refused {
            target,
            problem: "HDFS takes no such path".to_owned(),
            remedy: "check the path of the URL".to_owned(),
        },
        // SafeModeException, RetriableException, what a NameNode says that has just started, and all that is not known.
        _ => OriginError::Unavailable { target, detail },
    }
}

fn of_kerberos(text: &str, target: Arc<str>) -> OriginError {
    let detail = cut(text);
    if text.contains("Cannot contact any KDC") || text.contains("Resource temporarily") {
        OriginError::Unavailable { target, detail }
    } else if text.contains("expired") {
        OriginError::CredentialsExpired { target, detail }
    } else {
        denied(target, text, KERBEROS)
    }
}

/// A class without its package.
fn short(class: &str) -> &str {
    class.rsplit('.').next().unwrap_or(class)
}

/// A server's text, one line and not too long.
fn cut(text: &str) -> String {
    let mut text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_TEXT + 1)
        .collect();
    if text.chars().count() > MAX_TEXT {
        text.pop();
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(class: &str, text: &str) -> OriginError {
        let error = HdfsError::RPCError(class.to_owned(), text.to_owned());
        explain(Failed::Client(error), "hdfs://nn:8020/data".into(), None)
    }

    #[test]
    fn what_passes_is_told_from_what_never_does() {
        for (class, kind) in [
            ("org.apache.hadoop.ipc.StandbyException", "unavailable"),
            (
                "org.apache.hadoop.hdfs.server.namenode.SafeModeException",
                "unavailable",
            ),
            ("org.apache.hadoop.ipc.RetriableException", "unavailable"),
            ("java.io.IOException", "unavailable"),
            (
                "org.apache.hadoop.security.AccessControlException",
                "access_denied",
            ),
            (
                "org.apache.hadoop.security.authorize.AuthorizationException",
                "access_denied",
            ),
            (
                "org.apache.hadoop.security.token.SecretManager$InvalidToken",
                "access_denied",
            ),
            (
                "org.apache.hadoop.ipc.RpcNoSuchProtocolException",
                "refused",
            ),
        ] {
            let error = server(class, "why\n\tat a.b.C");
            assert_eq!(error.kind(), kind, "{class}");
            assert_eq!(error.is_retryable(), kind == "unavailable", "{class}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_a_server_says_is_one_line_and_not_long() {
        let error = server("java.io.IOException", &"\u{1b}[31m€".repeat(1000)).to_string();
        assert!(error.len() < 1200 && !error.contains('\u{1b}'), "{error}");
    }

    #[test]
    fn a_closed_connection_is_told_alike_whoever_saw_it_first() {
        for system in [libc::ECONNABORTED, libc::ECONNRESET, libc::EPIPE] {
            let error = io::Error::from_raw_os_error(system);
            let told = of_system(&error, "hdfs://nn:8020".into());
            assert!(told.is_retryable(), "{told}");
            assert!(told.to_string().contains("without an answer"), "{told}");
        }
    }

    #[test]
    fn an_expired_ticket_and_a_silent_kdc_are_told_apart() {
        let kerberos = |text: &str| of_kerberos(text, "hdfs://nn:8020".into()).kind();
        assert_eq!(kerberos("Ticket expired"), "credentials_expired");
        assert_eq!(
            kerberos("Cannot contact any KDC for realm 'X'"),
            "unavailable"
        );
        assert_eq!(kerberos("Key table entry not found"), "access_denied");
    }
}

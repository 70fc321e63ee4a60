//! How this process and others of its cluster know each other, by the flags `--certs` and `--insecure`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use weir_trust::{Access, Dial, Identity, Role, TrustError};

use crate::args::{AdmitArgs, CertsArgs};
use crate::exit::{Failure, Reason};

/// Days before its end from which on a certificate is warned of.
pub(crate) const RENEW_BEFORE: u64 = 14;
const WATCH_INTERVAL: Duration = Duration::from_hours(1);

/// How a server of a cluster knows others.
pub(crate) struct Trust {
    identity: Option<Arc<Identity>>,
    insecure: bool,
}

impl Trust {
    /// What the flags of a server of this role say.
    pub(crate) fn of_server(args: &AdmitArgs, role: Role) -> Result<Self, Failure> {
        let identity = identity(&args.certs)?;
        if identity.is_some() && args.insecure {
            return Err(Failure::new(
                Reason::Usage,
                "--insecure admits everybody and --certs (or WEIR_CERTS) does not; choose one of them",
            ));
        }
        if let Some(identity) = &identity {
            let subject = identity.subject();
            if subject.role != role {
                return Err(Failure::new(
                    Reason::Usage,
                    format!(
                        "the certificate in --certs is that of {subject}, and a {role} needs one of its own; make it with `weir certs issue`"
                    ),
                ));
            }
        }
        Ok(Self {
            identity,
            insecure: args.insecure,
        })
    }

    /// Who this process is, if it has a certificate.
    pub(crate) fn identity(&self) -> Option<&Arc<Identity>> {
        self.identity.as_ref()
    }

    /// Whom a server at this address admits.
    pub(crate) fn access(&self, listen: SocketAddr) -> Result<Access, Failure> {
        let access = Access::new(listen, self.identity.clone(), self.insecure)?;
        if let Access::Anybody = access {
            tracing::warn!(
                "{listen} is open to everybody who can reach it, and nobody who calls is known (--insecure)"
            );
        }
        Ok(access)
    }

    /// How others are called.
    pub(crate) fn dial(&self) -> Dial {
        Dial::new(self.identity.clone())
    }

    /// Tells of it in the process's metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let insecure = Gauge::<i64>::default();
        insecure.set(i64::from(self.insecure));
        registry.register(
            "weir_insecure",
            "1 when everybody who can reach this process is admitted",
            insecure,
        );
        if let Some(identity) = &self.identity {
            register(registry, identity);
        }
    }

    /// Warns of the process's certificate, if it has one, when it ends soon. Does so for ever.
    pub(crate) async fn watch(&self) -> Infallible {
        watch(self.identity.as_ref()).await
    }
}

/// Tells in a process's metrics when its certificate ends.
pub(crate) fn register(registry: &mut Registry, identity: &Arc<Identity>) {
    registry.register_collector(Box::new(Expiry(identity.clone())));
}

/// Is read at each scrape: a certificate that was renewed shows at once.
#[derive(Debug)]
struct Expiry(Arc<Identity>);

impl Collector for Expiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let ends = self.0.expires().duration_since(SystemTime::UNIX_EPOCH);
        let gauge = ConstGauge::new(ends.unwrap_or_default().as_secs() as i64);
        let of_metric = encoder.encode_descriptor(
            "weir_certificate_expires_timestamp_seconds",
            "When the certificate of this process ends",
            None,
            gauge.metric_type(),
        )?;
        gauge.encode(of_metric)
    }
}

/// Warns of a certificate that ends soon, at once and then every hour. Does so for ever.
pub(crate) async fn watch(identity: Option<&Arc<Identity>>) -> Infallible {
    let Some(identity) = identity else {
        return std::future::pending().await;
    };
    loop {
        let (subject, expires) = (identity.subject(), identity.expires());
        let until = moment(expires);
        match days_left(expires) {
            None => tracing::warn!(
                "the certificate of {subject} has ended at {until}, and others refuse it; renew it with `weir certs rotate`"
            ),
            Some(days) if days < RENEW_BEFORE => tracing::warn!(
                "the certificate of {subject} ends in {days} days, at {until}; renew it with `weir certs rotate`"
            ),
            Some(_) => {}
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Whole days until then; `None` if it has passed.
pub(crate) fn days_left(until: SystemTime) -> Option<u64> {
    let left = until.duration_since(SystemTime::now()).ok()?;
    Some(left.as_secs() / Duration::from_hours(24).as_secs())
}

/// A moment as people read it, in UTC.
pub(crate) fn moment(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default().as_nanos();
    crate::output::time(i64::try_from(since).unwrap_or(i64::MAX))
}

/// Who this process is, by its flags.
pub(crate) fn identity(args: &CertsArgs) -> Result<Option<Arc<Identity>>, Failure> {
    Ok(args.dir().map(Identity::load).transpose()?)
}

/// How this process calls others, by its flags.
pub(crate) fn dial(args: &CertsArgs) -> Result<Dial, Failure> {
    Ok(Dial::new(identity(args)?))
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        let reason = match &error {
            TrustError::Open(_) | TrustError::Address(_) | TrustError::Name(_) => Reason::Usage,
            TrustError::Exists(_) => Reason::Conflict,
            TrustError::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Reason::NotFound
            }
            _ => Reason::Other,
        };
        Self::new(reason, error)
    }
}

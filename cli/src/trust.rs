//! How this process and others of its cluster know each other, by the flags `--certs` and `--insecure`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use weir_trust::{Access, Dial, Identity, Peer, Renewal, Renewals, Role, TrustError};

use crate::args::{AdmitArgs, CertsArgs};
use crate::exit::{Failure, Reason};
use crate::renewal;

const WATCH_INTERVAL: Duration = Duration::from_hours(1);

/// How a process of a cluster knows others.
pub(crate) struct Trust {
    identity: Option<Arc<Identity>>,
    renewal: Option<Renewal>,
    insecure: bool,
}

impl Trust {
    /// What the flags of a server of this role say. Waits for a certificate that has to be signed.
    pub(crate) async fn of_server(
        args: &AdmitArgs,
        role: Role,
        stop: &CancellationToken,
    ) -> Result<Self, Failure> {
        let renewal = renewal::start(&args.certs, &args.signed, role, stop).await?;
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
            renewal,
            insecure: args.insecure,
        })
    }

    /// Of a process that only calls others, whose certificate is renewed if somebody signs it.
    #[cfg(feature = "csi")]
    pub(crate) fn of_client(args: &CertsArgs, renewal: Option<Renewal>) -> Result<Self, Failure> {
        Ok(Self {
            identity: identity(args)?,
            renewal,
            insecure: false,
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

    /// Tells of it in a server's metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let insecure = Gauge::<i64>::default();
        insecure.set(i64::from(self.insecure));
        registry.register(
            "weir_insecure",
            "1 when everybody who can reach this process is admitted",
            insecure,
        );
        self.register_certificate(registry);
    }

    /// Tells of the process's certificate in its metrics.
    pub(crate) fn register_certificate(&self, registry: &mut Registry) {
        if let Some(identity) = &self.identity {
            register(registry, identity);
        }
        if let Some(renewal) = &self.renewal {
            registry.register_collector(Box::new(Counted(renewal.renewals().clone())));
        }
    }

    /// Renews the process's certificate, if somebody signs it, and warns when it ends soon. Does so for ever.
    pub(crate) async fn watch(&self) -> Infallible {
        let renewing = async {
            match &self.renewal {
                Some(renewal) => renewal.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            never = watch(self.identity.as_ref()) => never,
            never = renewing => never,
        }
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

/// How often a certificate was asked for.
#[derive(Debug)]
struct Counted(Arc<Renewals>);

impl Collector for Counted {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let name = "weir_certificate_requests";
        let help = "Times that a certificate was asked for, by what became of it";
        let mut of_metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (result, count) in [("signed", &self.0.signed), ("failed", &self.0.failed)] {
            let count = ConstCounter::new(count.load(Ordering::Relaxed));
            let labels = [("result", result)];
            count.encode(of_metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Warns of a certificate that ends soon, at once and then every hour. Does so for ever.
pub(crate) async fn watch(identity: Option<&Arc<Identity>>) -> Infallible {
    let Some(identity) = identity else {
        return std::future::pending().await;
    };
    loop {
        let peer = identity.peer();
        let (subject, until) = (&peer.subject, moment(peer.expires));
        match state(&peer) {
            State::Ended => tracing::warn!(
                "the certificate of {subject} has ended at {until}, and others refuse it; renew it with `weir certs rotate`, or see why nobody signs another one"
            ),
            State::EndsSoon => tracing::warn!(
                "the certificate of {subject} ends at {until}; renew it with `weir certs rotate`, or see why nobody signs another one"
            ),
            State::Valid => {}
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// How long a certificate is good for yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Long enough.
    Valid,
    /// Somebody should renew it.
    EndsSoon,
    /// Others refuse it.
    Ended,
}

pub(crate) fn state(peer: &Peer) -> State {
    if peer.time_left().is_zero() {
        State::Ended
    } else if peer.ends_soon() {
        State::EndsSoon
    } else {
        State::Valid
    }
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

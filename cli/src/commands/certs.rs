//! `weir certs …`: the certificates of a cluster.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use weir_trust::{Authority, Identity, Peer, Place, Role, Subject, Validity, trusted_in};

use crate::args::{CertsCommand, IssueArgs, OutputFormat};
use crate::exit::{Failure, Reason};
use crate::output::{self, Rows};
use crate::trust::{self, State, moment};

const DAY: Duration = Duration::from_hours(24);
/// An authority has to be replaced everywhere before it ends.
const AUTHORITY_ENDS_SOON: Duration = Duration::from_hours(24 * 14);

pub(crate) fn run(command: CertsCommand) -> Result<(), Failure> {
    match command {
        CertsCommand::Init { ca, days } => init(&ca, days),
        CertsCommand::Issue(args) => issue(args),
        CertsCommand::Show { dir, output } => show(&dir, output),
        CertsCommand::Rotate {
            ca,
            dirs,
            authority: true,
            days,
        } => {
            let authority = Authority::rotate(&ca, validity(days))?;
            output::line(format_args!(
                "{} has a new key; what it issued before stays valid",
                ca.display()
            ))?;
            for dir in &dirs {
                let peer = authority.make_trusted(dir)?;
                output::line(format_args!(
                    "{} in {} trusts it, too",
                    peer.subject,
                    dir.display()
                ))?;
            }
            output::line(
                "renew the certificates (`weir certs rotate` without --authority) once every process has the new ca.crt",
            )
        }
        CertsCommand::Rotate { ca, dirs, days, .. } => {
            let authority = Authority::open(&ca, validity(days))?;
            for dir in &dirs {
                told(dir, "renewed", &authority.renew(dir)?)?;
            }
            Ok(())
        }
    }
}

fn init(ca: &Path, days: u16) -> Result<(), Failure> {
    Authority::init(ca, validity(Some(days)))?;
    output::line(format_args!(
        "made an authority in {}; whoever has its ca.key can be anybody in the cluster: keep it where no server runs",
        ca.display()
    ))
}

fn issue(args: IssueArgs) -> Result<(), Failure> {
    let usage = |message: String| Failure::new(Reason::Usage, message);
    let place = Place {
        zone: args.zone,
        group: args.group,
        pool: args.pool,
    };
    let limited = args.max_weight.is_some() || !args.address.is_empty();
    let limited = limited || place != Place::default();
    if args.role != Role::Worker && limited {
        return Err(usage(format!(
            "--address, --max-weight, --zone, --group and --pool are what a worker may claim, and this is a {}",
            args.role
        )));
    }
    if args.node.is_some() && !matches!(args.role, Role::Worker | Role::Mount) {
        return Err(usage(format!(
            "--node is what a worker or a mount may claim, and this is a {}",
            args.role
        )));
    }
    if let Some(wrong) = args.address.iter().find(|address| !is_host(address)) {
        return Err(usage(format!(
            "{wrong:?} is neither a host name nor an IP address; write it without a port"
        )));
    }
    if Authority::is_in(&args.out) {
        return Err(usage(format!(
            "{} holds an authority, whose key must stay there; choose another directory for the certificate",
            args.out.display()
        )));
    }
    let subject = Subject {
        role: args.role,
        name: args.name,
        max_weight: args.max_weight,
        node: args.node,
        place,
    };
    match Identity::peek(&args.out) {
        Ok(other) if other.subject.role != subject.role || other.subject.name != subject.name => {
            return Err(Failure::new(
                Reason::Conflict,
                format!(
                    "{} holds the certificate of {}; choose another directory",
                    args.out.display(),
                    other.subject
                ),
            ));
        }
        // None, one that is to be replaced, or one that cannot be used any more.
        _ => {}
    }
    let authority = Authority::open(&args.ca, validity(Some(args.days)))?;
    authority.issue(&subject, &args.address, &args.out)?;
    told(&args.out, "made", &Identity::peek(&args.out)?)
}

fn is_host(address: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    address.parse::<IpAddr>().is_ok() || (!address.is_empty() && address.chars().all(is_part))
}

fn told(dir: &Path, what: &str, peer: &Peer) -> Result<(), Failure> {
    output::line(format_args!(
        "{what} the certificate of {} in {}, valid until {} (UTC)",
        peer.subject,
        dir.display(),
        moment(peer.expires)
    ))
}

/// So many days for whatever is made.
fn validity(days: Option<u16>) -> Validity {
    let usual = Validity::default();
    let given = days.map(|days| DAY * u32::from(days));
    Validity {
        authority: given.unwrap_or(usual.authority),
        issued: given.unwrap_or(usual.issued),
    }
}

/// `weir certs show -o json`.
#[derive(Serialize)]
struct View {
    /// Of a process or a person; none of an authority.
    certificate: Option<CertificateView>,
    authorities: Vec<AuthorityView>,
}

#[derive(Serialize)]
struct CertificateView {
    role: &'static str,
    name: String,
    addresses: Vec<String>,
    max_weight_bytes: Option<u64>,
    node: Option<String>,
    zone: Option<String>,
    group: Option<String>,
    pool: Option<String>,
    expires: String,
    state: &'static str,
}

impl CertificateView {
    /// The zone, the group and the pool that it is bound to, as in `zone a, pool gpu`.
    fn place(&self) -> String {
        let named = [
            ("zone", &self.zone),
            ("group", &self.group),
            ("pool", &self.pool),
        ];
        let bound = named
            .iter()
            .filter_map(|(what, name)| Some(format!("{what} {}", name.as_ref()?)));
        let bound: Vec<String> = bound.collect();
        if bound.is_empty() {
            return "any".to_owned();
        }
        bound.join(", ")
    }
}

#[derive(Serialize)]
struct AuthorityView {
    name: String,
    expires: String,
    state: &'static str,
}

fn show(dir: &Path, format: OutputFormat) -> Result<(), Failure> {
    let peer = if Authority::is_in(dir) {
        None
    } else {
        // Read whole, so that what does not fit together is told.
        Identity::load(dir)?;
        Some(Identity::peek(dir)?)
    };
    let authorities = trusted_in(dir)?.into_iter().map(|trusted| AuthorityView {
        name: trusted.name,
        expires: moment(trusted.expires),
        state: authority_state(trusted.expires),
    });
    let view = View {
        certificate: peer.map(|peer| CertificateView {
            state: word(trust::state(&peer)),
            role: peer.subject.role.as_str(),
            name: peer.subject.name.to_string(),
            addresses: peer.addresses,
            max_weight_bytes: peer.subject.max_weight.map(|most| most.0),
            node: peer.subject.node.map(String::from),
            zone: peer.subject.place.zone.map(String::from),
            group: peer.subject.place.group.map(String::from),
            pool: peer.subject.place.pool.map(String::from),
            expires: moment(peer.expires),
        }),
        authorities: authorities.collect(),
    };
    if format == OutputFormat::Json {
        return output::json(&view);
    }
    if let Some(certificate) = &view.certificate {
        let mut rows = Rows::new(&[
            "role",
            "name",
            "addresses",
            "max weight",
            "node",
            "place",
            "valid until (UTC)",
            "state",
        ]);
        let weight = certificate.max_weight_bytes.map(output::size);
        rows.add([
            certificate.role.to_owned(),
            certificate.name.clone(),
            certificate.addresses.join(" "),
            weight.unwrap_or_else(|| "any".to_owned()),
            certificate.node.clone().unwrap_or_else(|| "any".to_owned()),
            certificate.place(),
            certificate.expires.clone(),
            certificate.state.to_owned(),
        ]);
        rows.print()?;
    }
    let mut rows = Rows::new(&["trusted authority", "valid until (UTC)", "state"]);
    for authority in &view.authorities {
        rows.add([
            authority.name.clone(),
            authority.expires.clone(),
            authority.state.to_owned(),
        ]);
    }
    rows.print()
}

fn word(state: State) -> &'static str {
    match state {
        State::Ended => "ended",
        State::EndsSoon => "ends soon",
        State::Valid => "valid",
    }
}

/// Of an authority, which nothing renews.
fn authority_state(expires: SystemTime) -> &'static str {
    word(match expires.duration_since(SystemTime::now()) {
        Err(_) => State::Ended,
        Ok(left) if left < AUTHORITY_ENDS_SOON => State::EndsSoon,
        Ok(_) => State::Valid,
    })
}

//! `weir credentials …`.
//!
//! What is secret comes from a file or standard input, and goes to a master only that is known, or is on this machine. No
//! argument, output or message has it.

mod keys;
mod listener;

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;
use tonic::transport::Channel;
use tonic::{Code, Status};
use weir_core::CredentialName;
use weir_core::id::split_name;
use weir_origin::MAX_SECRET;
use weir_proto::v1;
use weir_proto::v1::credential::Kind;
use weir_proto::v1::master_client::MasterClient;
use zeroize::Zeroizing;

use crate::args::{CredentialsCommand, MasterAddress, MasterRef, NewCredentialArgs, OutputFormat};
use crate::connect::{self, CALL_DEADLINE, request};
use crate::exit::{Failure, Reason};
use crate::output::{self, Rows, time};
use crate::process::runtime;
use crate::trust;

/// `weir credentials list -o json`.
#[derive(Serialize)]
struct View {
    name: String,
    kind: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    endpoints: Vec<String>,
    datasets: Vec<String>,
    created: String,
    changed: String,
    /// None if no process was given them.
    last_used: Option<String>,
}

impl From<v1::CredentialInfo> for View {
    fn from(info: v1::CredentialInfo) -> Self {
        Self {
            name: info.name,
            kind: info.kind,
            endpoints: info.endpoints,
            datasets: info.datasets,
            created: time(info.created_ns),
            changed: time(info.changed_ns),
            last_used: (info.used_ns > 0).then(|| time(info.used_ns)),
        }
    }
}

/// What must be read of credentials.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Keys,
    Role,
    WebIdentity,
    Keytab,
    Header,
    Google,
    AzureKey,
    AzureSas,
}

pub(crate) fn run(command: CredentialsCommand) -> Result<(), Failure> {
    runtime()?.block_on(async {
        match command {
            CredentialsCommand::Set { name, new, master } => {
                refuse_arguments(&new)?;
                let mut client = for_secrets(&master.at).await?;
                let wanted = wanted(&new);
                set(&mut client, &name, &new, wanted, &master, false).await
            }
            CredentialsCommand::Rotate { name, new, master } => {
                refuse_arguments(&new)?;
                let mut client = for_secrets(&master.at).await?;
                let wanted = known_kind(&mut client, &name).await?;
                set(&mut client, &name, &new, wanted, &master, true).await
            }
            CredentialsCommand::List { namespace, master } => {
                let mut client = connect::master(&master.at, None).await?;
                let mut infos = list(&mut client).await?;
                if let Some(namespace) = namespace {
                    infos.retain(|info| split_name(&info.name).0 == namespace);
                }
                show(infos, master.output)
            }
            CredentialsCommand::Delete { name, master } => {
                let mut client = connect::master(&master.at, None).await?;
                let delete = v1::DeleteCredentialRequest {
                    name: name.to_string(),
                };
                let delete = request(delete, CALL_DEADLINE);
                client
                    .delete_credential(delete)
                    .await
                    .map_err(no_credentials)?;
                output::line(format_args!("deleted credentials {name}"))
            }
        }
    })
}

/// Refuses secrets in arguments, and repeats none.
fn refuse_arguments(new: &NewCredentialArgs) -> Result<(), Failure> {
    if new.secret.is_none() && new.more.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Reason::Usage,
        "what is secret is not taken from arguments, which everybody on this machine can see; give it by standard input, or by --from FILE. What was in the arguments may be known to others: have it replaced",
    ))
}

/// What it means that a master does not know a call about credentials.
pub(crate) fn no_credentials(status: Status) -> Failure {
    if status.code() == Code::Unimplemented {
        return Failure::new(
            Reason::Refused,
            "the master is of an earlier version, which keeps no credentials; run a newer one",
        );
    }
    status.into()
}

/// The master that a command means, if it may be sent a secret.
async fn for_secrets(given: &MasterAddress) -> Result<MasterClient<Channel>, Failure> {
    let Some(address) = given.address() else {
        return connect::master(given, None).await;
    };
    if trust::dial(&given.certs)?.is_secure() {
        return connect::master(given, None).await;
    }
    let refused = |why: &str| {
        Failure::new(
            Reason::Usage,
            format!(
                "a secret is not sent to the master at {address}, {why}; give --certs DIR or WEIR_CERTS"
            ),
        )
    };
    if !is_here(address) {
        return Err(refused("which is elsewhere, without a certificate"));
    }
    let client = connect::master(given, None).await?;
    let own = rustix::process::geteuid().as_raw();
    if let Some(port) = port(address) {
        let users = listener::users(port);
        if users.is_empty() || users.iter().any(|user| *user != own && *user != 0) {
            return Err(refused("whose port is another user's"));
        }
    }
    Ok(client)
}

/// The port of an address that has one.
fn port(address: &str) -> Option<u16> {
    if address.starts_with("unix:") {
        return None;
    }
    address.rsplit_once(':')?.1.parse().ok()
}

/// Whether an address is one of this machine, to which others do not see what is sent.
fn is_here(address: &str) -> bool {
    if address.starts_with("unix:") {
        return true;
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let ip: Result<IpAddr, _> = host.parse();
    ip.is_ok_and(|ip| ip.to_canonical().is_loopback()) || host == "localhost"
}

async fn list(client: &mut MasterClient<Channel>) -> Result<Vec<v1::CredentialInfo>, Failure> {
    let asked = request(v1::ListCredentialsRequest {}, CALL_DEADLINE);
    let reply = client.list_credentials(asked).await;
    Ok(reply.map_err(no_credentials)?.into_inner().credentials)
}

/// The kind that flags name.
fn wanted(new: &NewCredentialArgs) -> Wanted {
    match new {
        NewCredentialArgs {
            token_file: Some(_),
            ..
        } => Wanted::WebIdentity,
        NewCredentialArgs {
            role_arn: Some(_), ..
        } => Wanted::Role,
        NewCredentialArgs {
            principal: Some(_), ..
        } => Wanted::Keytab,
        NewCredentialArgs {
            header: Some(_), ..
        } => Wanted::Header,
        NewCredentialArgs { google: true, .. } => Wanted::Google,
        NewCredentialArgs {
            azure_account: Some(_),
            ..
        } => Wanted::AzureKey,
        NewCredentialArgs {
            azure_sas: true, ..
        } => Wanted::AzureSas,
        _ => Wanted::Keys,
    }
}

/// The kind of credentials that are there.
async fn known_kind(
    client: &mut MasterClient<Channel>,
    name: &CredentialName,
) -> Result<Wanted, Failure> {
    let known = list(client).await?;
    let known = known.iter().find(|info| info.name == name.as_str());
    let known = known.ok_or_else(|| {
        Failure::new(
            Reason::NotFound,
            format!(
                "there are no credentials {name}; make them with `weir credentials set {name}`"
            ),
        )
    })?;
    match known.kind.as_str() {
        "keys" => Ok(Wanted::Keys),
        "role" => Ok(Wanted::Role),
        "web identity" => Ok(Wanted::WebIdentity),
        "keytab" => Ok(Wanted::Keytab),
        "header" => Ok(Wanted::Header),
        "google" => Ok(Wanted::Google),
        "azure key" => Ok(Wanted::AzureKey),
        "azure sas" => Ok(Wanted::AzureSas),
        other => Err(Failure::new(
            Reason::Usage,
            format!("credentials {name} are a {other}, which this version does not know"),
        )),
    }
}

async fn set(
    client: &mut MasterClient<Channel>,
    name: &CredentialName,
    new: &NewCredentialArgs,
    wanted: Wanted,
    master: &MasterRef,
    replace: bool,
) -> Result<(), Failure> {
    let credential = v1::Credential {
        kind: Some(kind(new, wanted)?),
        endpoints: new.endpoint.clone(),
    };
    let set = v1::SetCredentialRequest {
        name: name.to_string(),
        credential: Some(credential),
        replace,
    };
    let reply = client.set_credential(request(set, CALL_DEADLINE)).await;
    let info = reply.map_err(no_credentials)?.into_inner().info;
    let view = View::from(info.unwrap_or_default());
    if master.output == OutputFormat::Json {
        return output::json(&view);
    }
    let what = if replace { "replaced" } else { "set" };
    output::line(format_args!("{what} credentials {name} ({})", view.kind))
}

/// Reads what is secret, and puts it together with what the flags say.
fn kind(new: &NewCredentialArgs, wanted: Wanted) -> Result<Kind, Failure> {
    let text = |of: &Option<String>| of.clone().unwrap_or_default();
    Ok(match wanted {
        Wanted::Keys => Kind::Keys(keys::read(&secret(new, keys::WANTED)?)?),
        Wanted::Role => Kind::Role(v1::AssumedRole {
            arn: text(&new.role_arn),
            external_id: text(&new.external_id),
            keys: Some(keys::read(&secret(new, keys::WANTED)?)?),
        }),
        Wanted::WebIdentity => {
            if new.from != Path::new("-") {
                return Err(Failure::new(
                    Reason::Usage,
                    "a web identity's token is read where it is used, from --token-file; leave out --from",
                ));
            }
            Kind::WebIdentity(v1::WebIdentity {
                arn: text(&new.role_arn),
                token_file: text(&new.token_file),
            })
        }
        Wanted::Keytab => Kind::Keytab(v1::Keytab {
            principal: text(&new.principal),
            keytab: secret(new, "the keytab's content")?.to_vec(),
        }),
        Wanted::Header => Kind::Header(v1::HttpHeader {
            name: text(&new.header),
            value: line(new, "the header's value")?,
        }),
        Wanted::Google => Kind::Google(v1::GoogleFile {
            json: secret(new, "the JSON that Google's tools wrote")?.to_vec(),
        }),
        Wanted::AzureKey => Kind::AzureKey(v1::AzureKey {
            account: text(&new.azure_account),
            key: line(new, "the account's key")?,
        }),
        Wanted::AzureSas => Kind::AzureSas(v1::AzureSas {
            query: line(new, "the signature, sv=…&sig=…")?
                .trim_start_matches('?')
                .to_owned(),
        }),
    })
}

/// Reads a secret that is one line.
fn line(new: &NewCredentialArgs, what: &str) -> Result<String, Failure> {
    let secret = secret(new, what)?;
    let text = std::str::from_utf8(&secret);
    let text = text.map_err(|_| Failure::new(Reason::Usage, "what was read is no text"))?;
    Ok(text.trim().to_owned())
}

/// Reads the file that is named, or standard input, to its end.
fn secret(new: &NewCredentialArgs, what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut secret = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 1));
    let most = MAX_SECRET as u64 + 1;
    let (read, from) = if new.from == Path::new("-") {
        let input = std::io::stdin();
        if input.is_terminal() {
            output::note(format_args!("weir: type {what}, and end with Ctrl-D"));
        }
        let read = input.lock().take(most).read_to_end(&mut secret);
        (read, "standard input".to_owned())
    } else {
        let read = File::open(&new.from).and_then(|file| {
            warn_of_readers(&file, &new.from)?;
            file.take(most).read_to_end(&mut secret)
        });
        (read, new.from.display().to_string())
    };
    if let Err(error) = read {
        return Err(Failure::new(
            Reason::Usage,
            format!("{from} cannot be read: {error}"),
        ));
    }
    if secret.is_empty() || secret.len() > MAX_SECRET {
        return Err(Failure::new(
            Reason::Usage,
            format!("{from} is empty or longer than {MAX_SECRET} bytes; give {what}"),
        ));
    }
    Ok(secret)
}

/// Tells of a file that others can read. Secrets that somebody else manages, a pod's for instance, often are such files.
fn warn_of_readers(file: &File, path: &Path) -> std::io::Result<()> {
    let about = file.metadata()?;
    let mode = about.permissions().mode() & 0o777;
    if about.is_file() && mode & 0o077 != 0 {
        output::note(format_args!(
            "weir: others can read {} (mode {mode:o}); `chmod 600` it, or delete it, if that is not meant",
            path.display()
        ));
    }
    Ok(())
}

fn show(infos: Vec<v1::CredentialInfo>, format: OutputFormat) -> Result<(), Failure> {
    let views: Vec<View> = infos.into_iter().map(View::from).collect();
    if format == OutputFormat::Json {
        return output::json(&views);
    }
    let mut rows = Rows::new(&[
        "credentials",
        "kind",
        "for",
        "datasets",
        "changed (UTC)",
        "last used (UTC)",
    ]);
    let or_dash = |text: String| {
        Some(text)
            .filter(|text| !text.is_empty())
            .unwrap_or("-".into())
    };
    for view in views {
        rows.add([
            view.name,
            view.kind,
            or_dash(view.endpoints.join(" ")),
            or_dash(view.datasets.join(" ")),
            view.changed,
            or_dash(view.last_used.unwrap_or_default()),
        ]);
    }
    rows.print()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_goes_without_certificates_to_this_machine_alone() {
        for here in [
            "127.0.0.1:7440",
            "127.1.2.3:1",
            "[::1]:7440",
            "[::ffff:127.0.0.1]:7440",
            "localhost:7440",
            "unix:/run/master.sock",
        ] {
            assert!(is_here(here), "{here}");
        }
        for there in [
            "10.0.0.1:7440",
            "master:7440",
            "localhost.evil.example:7440",
            "127.0.0.1.evil.example:7440",
            "0.0.0.0:7440",
            "[::]:7440",
            "",
        ] {
            assert!(!is_here(there), "{there}");
        }
    }
}

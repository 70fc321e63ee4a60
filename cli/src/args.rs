//! The command line. Flags come before environment variables, those before defaults.

use std::ffi::CStr;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use weir_core::id::check_namespace;
use weir_core::placement::choice::{Copies, Wanted};
use weir_core::placement::domains::{Keep, Spread};
use weir_core::placement::places::Place;
use weir_core::{
    ByteSize, CredentialName, DatasetName, DatasetRef, FreeSpace, NodeName, PlaceName, WorkerId,
};
use weir_origin::{Addressing, AllowedDir, AllowedEndpoint, SourcePolicy};
use weir_trust::Role;
use weir_worker::LEAST_FILL_BUDGET;
use weir_worker::stream::StreamMode;

/// A distributed cache for AI training data: mount object stores at the speed of the local disk.
#[derive(Parser)]
#[command(name = "weir", version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Mount a bucket, a directory, or a dataset of a cluster
    Mount(MountArgs),
    /// End a mount cleanly
    Unmount(UnmountArgs),
    /// Run the master of a cluster
    Master(MasterArgs),
    /// Run a worker of a cluster; or list, show, cordon and drain workers
    Worker(Box<WorkerArgs>),
    /// Create, list, show, refresh and delete datasets
    #[command(subcommand)]
    Dataset(DatasetCommand),
    /// Make datasets be as a file declares them
    Apply(ApplyArgs),
    /// Show what `weir apply` would change; ends with code 1 if anything
    Diff(ApplyArgs),
    /// Keep credentials with the master, for sources that name them
    #[command(subcommand)]
    Credentials(CredentialsCommand),
    /// Fetch a dataset, or some paths of it, into the cache
    Warm(WarmArgs),
    /// Drop a dataset, or some paths of it, from the cache
    Evict(EvictArgs),
    /// Show workers, tiers, datasets and hit ratios
    Status(StatusArgs),
    /// Run a small cluster on this machine, with certificates of its own, until it is stopped
    Dev(DevArgs),
    /// Make, show and renew the certificates by which the processes of a cluster know each other
    #[command(subcommand)]
    Certs(CertsCommand),
    /// Run the operator of a Kubernetes cluster: Datasets of the group weir.io become volumes
    #[cfg(feature = "kubernetes")]
    Operator(OperatorArgs),
    /// Run the node plugin of Kubernetes: datasets become volumes of pods
    #[cfg(feature = "csi")]
    Csi(Box<CsiArgs>),
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Keep a mount alive (started by `weir mount`)
    #[command(hide = true)]
    Supervise,
    /// Hold a mount whose other processes may die (started by the supervisor)
    #[command(hide = true)]
    Hold,
    /// Serve a mount (started by the supervisor)
    #[command(hide = true)]
    ServeMount {
        #[arg(long)]
        config: String,
    },
    /// Give the kernel files that a mount's server has read ahead (started by the server)
    #[command(hide = true)]
    ReadAhead,
}

impl Command {
    /// What `ps` and `top` show of a process that stays; `None` for a command that ends by itself. At most 15 bytes.
    pub(crate) fn process_name(&self) -> Option<&'static CStr> {
        match self {
            Self::Mount(_) | Self::Supervise => Some(c"weir-mount"),
            Self::ServeMount { .. } => Some(c"weir-serve"),
            Self::Hold => Some(c"weir-hold"),
            Self::ReadAhead => Some(c"weir-read-ahead"),
            Self::Master(_) => Some(c"weir-master"),
            Self::Worker(args) => args.command.is_none().then_some(c"weir-worker"),
            Self::Dev(_) => Some(c"weir-dev"),
            #[cfg(feature = "kubernetes")]
            Self::Operator(args) => args.command.is_none().then_some(c"weir-operator"),
            #[cfg(feature = "csi")]
            Self::Csi(args) => match args.command {
                None => Some(c"weir-csi"),
                Some(CsiCommand::Holder(_)) => Some(c"weir-csi-holder"),
                Some(CsiCommand::Ready(_)) => None,
            },
            _ => None,
        }
    }
}

/// How this process shows who it is.
#[derive(Args, Clone, Default)]
pub(crate) struct CertsArgs {
    /// Directory of a certificate of the cluster: ca.crt, tls.crt and tls.key, made by `weir certs issue`
    #[arg(long, value_name = "DIR", env = "WEIR_CERTS", value_parser = maybe_path())]
    certs: Option<PathBuf>,
}

impl CertsArgs {
    /// The directory; a variable that is set to nothing names none.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.certs
            .as_deref()
            .filter(|dir| !dir.as_os_str().is_empty())
    }
}

fn maybe_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Who signs the certificate of a process in a cluster's pod.
#[derive(Args, Clone)]
pub(crate) struct SignedArgs {
    /// Where `weir operator` signs certificates, HOST:PORT: one is asked for, kept in --certs and renewed, with keys that are made here
    #[arg(long, value_name = "HOST:PORT", env = "WEIR_CERTS_FROM")]
    certs_from: Option<String>,
    /// Directory with `token`, which Kubernetes has made for this pod and the audience weir-operator, and `ca.crt`, the authority of
    /// the operator's certificate
    #[arg(long, value_name = "DIR", default_value = "/var/run/secrets/weir")]
    pub(crate) certs_proof: PathBuf,
}

impl SignedArgs {
    /// The address; a variable that is set to nothing names none.
    pub(crate) fn from(&self) -> Option<&str> {
        self.certs_from
            .as_deref()
            .filter(|address| !address.is_empty())
    }
}

/// Whom a server of a cluster admits.
#[derive(Args, Clone)]
pub(crate) struct AdmitArgs {
    #[command(flatten)]
    pub(crate) certs: CertsArgs,
    #[command(flatten)]
    pub(crate) signed: SignedArgs,
    /// Admit everybody who can reach this process; without it, beyond loopback, only those with a certificate
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// Where the data of an origin is and how it is addressed.
#[derive(Args, Clone, Default)]
pub(crate) struct OriginArgs {
    /// URL of an S3-compatible service, such as http://minio:9000; also of OSS, of an Azure account, or of an emulator
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// Region of the bucket
    #[arg(long)]
    pub(crate) region: Option<String>,
    /// Send requests without a signature, for public buckets
    #[arg(long)]
    pub(crate) anonymous: bool,
    /// Profile of ~/.aws/config and ~/.aws/credentials
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// Where the bucket's name goes: `path` (HOST/BUCKET), `virtual` (BUCKET.HOST), or `auto`
    #[arg(long, value_enum, default_value_t)]
    pub(crate) addressing: AddressingArg,
    /// How long a read waits for an origin that fails or is silent before it is an error, such as 90s or 10m [default:
    /// 30s, for HDFS 10m]
    #[arg(long, value_name = "TIME", env = "WEIR_PATIENCE", value_parser = parse_seconds)]
    pub(crate) patience: Option<u32>,
}

impl CacheArgs {
    /// What a full SSD tier drops.
    pub(crate) fn evict_idle(&self) -> Duration {
        self.evict_idle.unwrap_or(weir_worker::EVICT_IDLE)
    }
}

/// Which sources a process of a cluster reads. Datasets are named by others than who runs it.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SourceArgs {
    /// Directory below which file:// sources may lie; may be repeated [default: none]
    #[arg(long, value_name = "DIR")]
    #[serde(default)]
    pub(crate) allow_file: Vec<AllowedDir>,
    /// Endpoint of sources: HOST, HOST:PORT, a network such as 10.0.0.0/8, *.DOMAIN or any; may be repeated. Those on
    /// loopback and link-local addresses must be named. With any named, others than those, AWS's and that of the
    /// environment are refused [default: all others, without this process's credentials]
    #[arg(long, value_name = "ENDPOINT")]
    #[serde(default)]
    pub(crate) allow_endpoint: Vec<AllowedEndpoint>,
}

impl SourceArgs {
    /// The policy of a process that `command` runs, as in `weir worker`.
    pub(crate) fn policy(&self, command: &'static str) -> SourcePolicy {
        SourcePolicy::of(
            command,
            self.allow_file.clone(),
            self.allow_endpoint.clone(),
        )
    }
}

/// `30`, `30s`, `10m` or `2h` in seconds.
fn parse_seconds(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is not a time: write 30s, 10m or 2h");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u32 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

#[derive(Clone, Copy, Default, ValueEnum)]
pub(crate) enum AddressingArg {
    /// Path style with --endpoint, virtual-hosted without
    #[default]
    Auto,
    Path,
    Virtual,
}

impl From<AddressingArg> for Addressing {
    fn from(arg: AddressingArg) -> Self {
        match arg {
            AddressingArg::Auto => Self::Auto,
            AddressingArg::Path => Self::Path,
            AddressingArg::Virtual => Self::Virtual,
        }
    }
}

/// Where small files go ahead of their readers.
#[derive(Clone, Copy, Default, Debug, ValueEnum, Serialize, Deserialize)]
pub(crate) enum ReadAheadArg {
    /// Into the page cache if half of the memory holds the snapshot, else into the tiers
    #[default]
    Auto,
    PageCache,
    Tiers,
    Off,
}

/// The cache of a worker, or of a mount with its own worker.
#[derive(Args, Clone)]
pub(crate) struct CacheArgs {
    /// Size of the memory tier; 0 turns it off [default: 1GiB, at most a tenth of the memory that is left beside
    /// 128MiB; control groups' limits count]
    #[arg(long, value_name = "SIZE", env = "WEIR_MEM")]
    pub(crate) mem: Option<ByteSize>,
    /// Directory and size of an SSD tier; may be repeated [default: a directory under the user's cache
    /// directory, with a fifth of the free space and at most 100GiB]
    #[arg(long, value_name = "DIR:SIZE")]
    pub(crate) ssd: Vec<SsdArg>,
    /// Free space to leave to others on the disks of the SSD tiers, such as 50GiB or 15%: a tier gives back what others take of it
    #[arg(
        long,
        value_name = "SIZE|PERCENT",
        env = "WEIR_SSD_FREE",
        default_value = "0"
    )]
    pub(crate) ssd_free: FreeSpace,
    /// A full SSD tier makes room by dropping what nobody has read for this long, such as 10m or 2h: `0s` drops what was read
    /// longest ago with each new block, `never` keeps what is cached and caches nothing new [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = idle_time)]
    pub(crate) evict_idle: Option<Duration>,
    /// Most memory for blocks on their way from an origin or to SSD; with more, more requests for big files are under
    /// way at once to a service that is far away [default: 32MiB, at most a sixteenth of the memory, at least 8MiB]
    #[arg(long, value_name = "SIZE", value_parser = fill_memory)]
    pub(crate) fill_memory: Option<ByteSize>,
}

fn idle_time(text: &str) -> Result<Duration, String> {
    if text == "never" {
        return Ok(Duration::MAX);
    }
    let seconds = parse_seconds(text).map_err(|error| format!("{error}, or never"))?;
    Ok(Duration::from_secs(seconds.into()))
}

fn fill_memory(text: &str) -> Result<ByteSize, String> {
    at_least(text, LEAST_FILL_BUDGET, || {
        format!("two blocks must fit: write at least {LEAST_FILL_BUDGET}")
    })
}

/// A size that is not less than another one.
fn at_least(
    text: &str,
    least: ByteSize,
    otherwise: impl FnOnce() -> String,
) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error| format!("{error}"))?;
    if size < least {
        return Err(otherwise());
    }
    Ok(size)
}

/// `DIR:SIZE`, as in `/nvme:50GiB`.
#[derive(Clone, Debug)]
pub(crate) struct SsdArg {
    pub(crate) dir: PathBuf,
    pub(crate) size: ByteSize,
}

impl FromStr for SsdArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write a directory and a size, for example /nvme:50GiB";
        let (dir, size) = text.rsplit_once(':').ok_or(example)?;
        if dir.is_empty() {
            return Err(example.to_owned());
        }
        let size = size
            .parse::<ByteSize>()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            dir: PathBuf::from(dir),
            size,
        })
    }
}

/// An octal mode, as in `0444`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode(pub(crate) u16);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        u16::from_str_radix(text.trim_start_matches("0o"), 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .map(Self)
            .ok_or_else(|| "write an octal mode from 0 to 777, for example 0444".to_owned())
    }
}

#[derive(Args)]
pub(crate) struct MountArgs {
    /// s3://bucket/prefix, gs://, az://, oss://, hdfs://namenode:port/dir, https://host/dir/ or file:///dir for a mount
    /// with its own cache; a dataset's name (NAME or NAME@SNAPSHOT) with --master
    pub(crate) source: String,
    /// The directory to mount at; made if it is missing
    pub(crate) dir: PathBuf,
    /// Master of a cluster, HOST:PORT
    #[arg(long, value_name = "HOST:PORT", env = "WEIR_MASTER")]
    pub(crate) master: Option<String>,
    #[command(flatten)]
    pub(crate) certs: CertsArgs,
    /// Name of the dataset that a URL is kept as, with an optional snapshot [default: made from the URL]
    #[arg(long, value_name = "NAME[@SNAPSHOT]")]
    pub(crate) dataset: Option<DatasetRef>,
    /// List the origin again before mounting; without it a known snapshot is mounted as it is
    #[arg(long)]
    pub(crate) refresh: bool,
    #[command(flatten)]
    pub(crate) origin: OriginArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) sources: SourceArgs,
    /// Never read the origin of a cluster's dataset by itself: through its workers alone, and without the credentials of its
    /// sources
    #[arg(long)]
    pub(crate) no_origin_fallback: bool,
    /// Keep manifests and the cluster map here, 2 GiB at most, also for other mounts, and mount NAME@NUMBER by them while the master
    /// does not answer
    #[arg(long, value_name = "DIR")]
    pub(crate) known_dir: Option<PathBuf>,
    /// Stay in the foreground until the mount ends
    #[arg(long, short)]
    pub(crate) foreground: bool,
    /// Let other users read the mount (needs user_allow_other in /etc/fuse.conf unless root)
    #[arg(long)]
    pub(crate) allow_other: bool,
    /// Owner that all entries show [default: the caller]
    #[arg(long)]
    pub(crate) uid: Option<u32>,
    /// Group that all entries show [default: the caller's]
    #[arg(long)]
    pub(crate) gid: Option<u32>,
    /// Permissions of files
    #[arg(long, value_name = "OCTAL", default_value = "0444")]
    pub(crate) file_mode: Mode,
    /// Permissions of directories
    #[arg(long, value_name = "OCTAL", default_value = "0555")]
    pub(crate) dir_mode: Mode,
    /// Address of /metrics and /healthz; port 0 picks a free one, which `weir status` shows
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:0",
        env = "WEIR_HTTP"
    )]
    pub(crate) http: SocketAddr,
    /// Name of this machine in the cluster map [default: the host's name]
    #[arg(long, env = "WEIR_NODE")]
    pub(crate) node: Option<NodeName>,
    /// The zone that this machine stands in: the nearest copy of a dataset is read [default: that of a worker on it]
    #[arg(long, value_name = "NAME", env = "WEIR_ZONE", value_parser = place())]
    pub(crate) zone: Option<MaybePlace>,
    /// The rack or the like that it stands in, inside of the zone [default: that of a worker on it]
    #[arg(long, value_name = "NAME", env = "WEIR_GROUP", value_parser = place())]
    pub(crate) group: Option<MaybePlace>,
    /// Where small files go ahead of their readers: `page-cache`, `tiers`, `off`, or `auto`
    #[arg(long, value_enum, default_value_t, value_name = "WHERE")]
    pub(crate) read_ahead: ReadAheadArg,
    /// Longest wait for the mount to become usable, in seconds; listing a large bucket takes time
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub(crate) timeout: u64,
}

#[cfg(feature = "csi")]
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct CsiArgs {
    #[command(subcommand)]
    pub(crate) command: Option<CsiCommand>,
    /// The plugin's socket, as it sees it
    #[arg(
        long,
        value_name = "unix://PATH",
        default_value = "unix:///var/lib/kubelet/plugins/csi.weir.io/csi.sock",
        value_parser = unix_socket
    )]
    pub(crate) endpoint: PathBuf,
    /// The same socket, as kubelet sees it [default: --endpoint]
    #[arg(long, value_name = "PATH")]
    pub(crate) kubelet_endpoint: Option<PathBuf>,
    /// Kubelet's directory of plugins' sockets, such as /var/lib/kubelet/plugins_registry [default: none, and kubelet is told by
    /// somebody else]
    #[arg(long, value_name = "DIR")]
    pub(crate) registration_dir: Option<PathBuf>,
    /// Kubelet's directory, at the same path for this process as for kubelet; volumes are mounted below it
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub(crate) kubelet_dir: PathBuf,
    /// Where snapshots are mounted, once for all volumes [default: plugins/csi.weir.io/mounts in --kubelet-dir]
    #[arg(long, value_name = "DIR")]
    pub(crate) mounts_dir: Option<PathBuf>,
    /// Where mounts keep their state: manifests, and what is known of the cluster; in `known` what outlives them
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weir/csi")]
    pub(crate) dir: PathBuf,
    /// Name of this node in Kubernetes, and of this machine in the cluster map
    #[arg(long, value_name = "NAME", env = "WEIR_NODE")]
    pub(crate) node_id: Option<NodeName>,
    /// The master, HOST:PORT
    #[arg(long, value_name = "HOST:PORT", env = "WEIR_MASTER")]
    pub(crate) master: Option<String>,
    /// Directory of sockets that this pod and that of `weir csi holder` share; with it all mounts are held there, too
    #[arg(long, value_name = "DIR")]
    pub(crate) peer_dir: Option<PathBuf>,
    /// Take the sockets of a plugin over that still runs, as during an update
    #[arg(long)]
    pub(crate) take_over: bool,
    #[command(flatten)]
    pub(crate) certs: CertsArgs,
    #[command(flatten)]
    pub(crate) signed: SignedArgs,
    /// The zone that this node stands in: the nearest copy of a dataset is read [default: that of a worker on it]
    #[arg(long, value_name = "NAME", env = "WEIR_ZONE", value_parser = place())]
    pub(crate) zone: Option<MaybePlace>,
    /// The rack or the like that it stands in, inside of the zone; kubelet makes it the node's label weir.io/group
    #[arg(long, value_name = "NAME", env = "WEIR_GROUP", value_parser = place())]
    pub(crate) group: Option<MaybePlace>,
    /// Address of /metrics and /healthz
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:7461",
        env = "WEIR_HTTP"
    )]
    pub(crate) http: SocketAddr,
    /// More flags of `weir mount` for all mounts, behind --
    #[arg(last = true, value_name = "FLAG")]
    pub(crate) mount_flags: Vec<String>,
}

#[cfg(feature = "csi")]
#[derive(Subcommand)]
pub(crate) enum CsiCommand {
    /// Hold the mounts of the node plugin, from another pod, and serve them should all of its processes die
    Holder(CsiHolderArgs),
    /// End well if every mount is held by two pods
    Ready(CsiReadyArgs),
}

#[cfg(feature = "csi")]
#[derive(Args)]
pub(crate) struct CsiHolderArgs {
    /// Directory of sockets that this pod and that of `weir csi` share
    #[arg(long, value_name = "DIR")]
    pub(crate) peer_dir: PathBuf,
    #[command(flatten)]
    pub(crate) certs: CertsArgs,
    #[command(flatten)]
    pub(crate) signed: SignedArgs,
    /// Address of /metrics and /healthz
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:7462",
        env = "WEIR_HTTP"
    )]
    pub(crate) http: SocketAddr,
}

#[cfg(feature = "csi")]
#[derive(Args)]
pub(crate) struct CsiReadyArgs {
    /// Wait as long for it, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) wait: u64,
}

/// The path of `unix://PATH`, or a path.
#[cfg(feature = "csi")]
fn unix_socket(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if path.starts_with('/') {
        return Ok(path.into());
    }
    Err(format!("{text:?} is no socket: write unix:///DIR/csi.sock"))
}

#[derive(Args)]
pub(crate) struct UnmountArgs {
    /// The mounted directory
    pub(crate) dir: PathBuf,
    /// Detach the mount now even if it is in use; it ends when the last user lets go
    #[arg(long, short)]
    pub(crate) lazy: bool,
}

/// Whom a server that another process has started belongs to.
#[derive(Args, Clone)]
pub(crate) struct ParentArgs {
    /// Stop when this process, which has started this one, ends
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) parent: Option<u32>,
}

#[derive(Args)]
pub(crate) struct MasterArgs {
    /// Directory for datasets and manifests
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weir/master")]
    pub(crate) dir: PathBuf,
    /// Address of the control service
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7440")]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) admit: AdmitArgs,
    #[command(flatten)]
    pub(crate) parent: ParentArgs,
    /// Address of /metrics and /healthz
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:7441",
        env = "WEIR_HTTP"
    )]
    pub(crate) http: SocketAddr,
    #[command(flatten)]
    pub(crate) sources: SourceArgs,
    /// File with the key that credentials are encrypted with: 64 hexadecimal digits, or several such lines, the newest
    /// first. WEIR_CREDENTIALS_KEY may hold the key itself instead [default: none, and no credentials are kept]
    #[arg(long, value_name = "FILE")]
    pub(crate) credentials_key: Option<PathBuf>,
    /// Forget the credentials that the key does not open, instead of not starting: when a key is lost
    #[arg(long)]
    pub(crate) forget_credentials: bool,
    /// Give credentials of sources to workers alone, and to no mount, which then reads such sources through workers
    #[arg(long)]
    pub(crate) no_origin_fallback: bool,
    /// Give a mount credentials only while a pod on its node uses the dataset, as the operator of Kubernetes says
    #[arg(long)]
    pub(crate) credentials_by_pods: bool,
}

#[cfg(feature = "kubernetes")]
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct OperatorArgs {
    #[command(subcommand)]
    pub(crate) command: Option<OperatorCommand>,
    /// The master, HOST:PORT
    #[arg(long, value_name = "HOST:PORT", env = "WEIR_MASTER")]
    pub(crate) master: Option<String>,
    #[command(flatten)]
    pub(crate) certs: CertsArgs,
    /// Namespace of the installation, where the operator's Lease is
    #[arg(
        long,
        value_name = "NAMESPACE",
        default_value = "weir-system",
        env = "WEIR_NAMESPACE"
    )]
    pub(crate) namespace: String,
    /// Address of /metrics and /healthz
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:7461",
        env = "WEIR_HTTP"
    )]
    pub(crate) http: SocketAddr,
    /// Address where the apiserver asks about pods, Datasets and Warmups [default: it is not served]
    #[arg(long, value_name = "IP:PORT", env = "WEIR_WEBHOOK")]
    pub(crate) webhook: Option<SocketAddr>,
    /// Directory of the cluster's authority, ca.crt and ca.key: the operator's own certificate is made with it, in --certs, and those
    /// of Weir's pods at --sign [default: the certificate in --certs is used as it is]
    #[arg(long, value_name = "DIR", env = "WEIR_AUTHORITY", requires = "certs", value_parser = maybe_path())]
    pub(crate) authority: Option<PathBuf>,
    /// Address where pods of Weir ask for their certificates, with --authority
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:7463",
        env = "WEIR_SIGN"
    )]
    pub(crate) sign: SocketAddr,
    /// Template of a worker's pod, as JSON, of which the workers of CachePools are made [default: none, and there are no workers
    /// of CachePools]
    #[arg(long, value_name = "FILE", env = "WEIR_WORKER_TEMPLATE")]
    pub(crate) worker_template: Option<PathBuf>,
}

#[cfg(feature = "kubernetes")]
#[derive(Subcommand)]
pub(crate) enum OperatorCommand {
    /// Let go of all objects and pods that operators hold, before Weir is uninstalled
    Retire {
        /// Namespace of the installation
        #[arg(
            long,
            value_name = "NAMESPACE",
            default_value = "weir-system",
            env = "WEIR_NAMESPACE"
        )]
        namespace: String,
    },
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct WorkerArgs {
    #[command(subcommand)]
    pub(crate) command: Option<WorkerCommand>,
    /// The master, HOST:PORT
    #[arg(long, value_name = "HOST:PORT", env = "WEIR_MASTER")]
    pub(crate) master: Option<String>,
    /// Directory for the worker's own files; also the SSD tier when --ssd is not given
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weir/worker")]
    pub(crate) dir: PathBuf,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    /// Most bytes of copies of other workers' blocks, for files that many read at once; 0 makes none [default: an eighth of the
    /// cache]
    #[arg(long, value_name = "SIZE")]
    pub(crate) copies: Option<ByteSize>,
    /// Most bytes of other workers' blocks that are kept for readers on this node, of datasets that say `keep: node`; 0 keeps none
    /// [default: an eighth of the cache]
    #[arg(long, value_name = "SIZE")]
    pub(crate) keep: Option<ByteSize>,
    /// Most bytes that this worker sends to other machines in a second; all who read get the same part of it [default: no
    /// limit]
    #[arg(long, value_name = "BYTES", value_parser = egress)]
    pub(crate) egress_limit: Option<ByteSize>,
    /// Name of this worker; placement depends on it, so it must stay the same over restarts [default: the
    /// certificate's, or the node's]
    #[arg(long)]
    pub(crate) id: Option<WorkerId>,
    /// Name of this machine [default: the host's name]
    #[arg(long, env = "WEIR_NODE")]
    pub(crate) node: Option<NodeName>,
    /// The zone that this machine stands in [default: the certificate's]
    #[arg(long, value_name = "NAME", env = "WEIR_ZONE", value_parser = place())]
    pub(crate) zone: Option<MaybePlace>,
    /// The rack or the like that it stands in, inside of the zone [default: the certificate's]
    #[arg(long, value_name = "NAME", env = "WEIR_GROUP", value_parser = place())]
    pub(crate) group: Option<MaybePlace>,
    /// Pool of workers that this one belongs to [default: the certificate's]
    #[arg(long, value_name = "NAME", env = "WEIR_POOL", value_parser = place())]
    pub(crate) pool: Option<MaybePlace>,
    /// The machine that mounts on it name as their node, where that is not --node
    #[arg(long, value_name = "NAME", hide = true)]
    pub(crate) machine: Option<NodeName>,
    /// Address of the block stream
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7450")]
    pub(crate) listen: SocketAddr,
    /// Address of the control service
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7451")]
    pub(crate) control: SocketAddr,
    #[command(flatten)]
    pub(crate) admit: AdmitArgs,
    /// What protects the block stream between processes that have certificates
    #[arg(long, value_enum, default_value_t)]
    pub(crate) stream: StreamArg,
    #[command(flatten)]
    pub(crate) parent: ParentArgs,
    /// Host that others reach this worker at [default: the listen address; when that is 0.0.0.0, the
    /// first that the certificate names, or the host's name]
    #[arg(long, value_name = "HOST")]
    pub(crate) advertise: Option<String>,
    /// Address of /metrics and /healthz
    #[arg(
        long,
        value_name = "IP:PORT",
        default_value = "127.0.0.1:7452",
        env = "WEIR_HTTP"
    )]
    pub(crate) http: SocketAddr,
    #[command(flatten)]
    pub(crate) sources: SourceArgs,
}

#[derive(Subcommand)]
pub(crate) enum WorkerCommand {
    /// List the workers of the cluster, and how each stands
    List {
        #[command(flatten)]
        master: MasterRef,
    },
    /// Show one worker: its tiers, and how it stands
    Get {
        id: WorkerId,
        #[command(flatten)]
        master: MasterRef,
    },
    /// Give a worker no more blocks; it goes on serving those that it holds
    Cordon {
        id: WorkerId,
        #[command(flatten)]
        master: MasterRef,
    },
    /// Give a worker blocks again, also one that is being drained
    Uncordon {
        id: WorkerId,
        #[command(flatten)]
        master: MasterRef,
    },
    /// Cordon a worker, and have the others take its blocks over, so that it can be stopped
    Drain(DrainArgs),
}

#[derive(Args)]
pub(crate) struct DrainArgs {
    pub(crate) id: WorkerId,
    /// Show progress and return when the others have its blocks; after Ctrl-C the drain goes on
    #[arg(long)]
    pub(crate) wait: bool,
    /// Most bytes that are taken over in a second, by all workers together [default: 128MiB]
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    pub(crate) rate: Option<ByteSize>,
    /// End the drain that is under way; the worker stays cordoned
    #[arg(long, conflicts_with_all = ["wait", "rate"])]
    pub(crate) cancel: bool,
    #[command(flatten)]
    pub(crate) master: MasterRef,
}

/// Least that a worker may be allowed to send in a second: a block in four seconds.
const LEAST_EGRESS: ByteSize = ByteSize(1 << 20);

fn rate(text: &str) -> Result<ByteSize, String> {
    at_least(text, ByteSize(1), || {
        "nothing would be taken over; give more, as in 64MiB".to_owned()
    })
}

fn egress(text: &str) -> Result<ByteSize, String> {
    at_least(text, LEAST_EGRESS, || {
        format!("readers would take the worker for dead: give at least {LEAST_EGRESS}")
    })
}

/// What protects the block stream.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum StreamArg {
    /// A challenge at the beginning of each connection: bytes cost as much as without, and who is on their path can read
    /// and change them
    #[default]
    Authenticated,
    /// TLS: nobody on the path reads or changes bytes
    Tls,
}

impl From<StreamArg> for StreamMode {
    fn from(arg: StreamArg) -> Self {
        match arg {
            StreamArg::Authenticated => Self::Authenticated,
            StreamArg::Tls => Self::Tls,
        }
    }
}

/// How to reach the master.
#[derive(Args, Clone)]
pub(crate) struct MasterAddress {
    /// The master, HOST:PORT [default: the one inside the mount on this machine]
    #[arg(long, value_name = "HOST:PORT", env = "WEIR_MASTER")]
    master: Option<String>,
    #[command(flatten)]
    pub(crate) certs: CertsArgs,
}

impl MasterAddress {
    /// The master's address; a variable that is set to nothing names none.
    pub(crate) fn address(&self) -> Option<&str> {
        self.master.as_deref().filter(|address| !address.is_empty())
    }
}

/// How to reach the master and how to print.
#[derive(Args, Clone)]
pub(crate) struct MasterRef {
    #[command(flatten)]
    pub(crate) at: MasterAddress,
    /// Output format
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: OutputFormat,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    #[default]
    Table,
    Json,
}

/// How datasets are printed.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DatasetFormat {
    #[default]
    Table,
    Json,
    /// As `weir apply` takes it
    Yaml,
}

impl From<OutputFormat> for DatasetFormat {
    fn from(format: OutputFormat) -> Self {
        match format {
            OutputFormat::Table => Self::Table,
            OutputFormat::Json => Self::Json,
        }
    }
}

#[derive(Args)]
pub(crate) struct ApplyArgs {
    /// YAML or JSON with one or many datasets; `-` for standard input
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) master: MasterAddress,
}

#[derive(Subcommand)]
pub(crate) enum DatasetCommand {
    /// Name data and list it into a first snapshot
    Create {
        name: DatasetName,
        /// URL, or URL:PATH to put it at a path inside the dataset
        #[arg(required = true, value_name = "URL[:PATH]")]
        mounts: Vec<String>,
        #[command(flatten)]
        origin: OriginArgs,
        /// Credentials that the master keeps under this name, in the place of its own and its workers'
        #[arg(long, value_name = "NAME")]
        credentials: Option<String>,
        /// Glob of files to take, as in '**/*.jpg', by their paths inside each source; may be repeated
        #[arg(long, value_name = "GLOB")]
        include: Vec<String>,
        /// Glob of files to leave out; may be repeated
        #[arg(long, value_name = "GLOB")]
        exclude: Vec<String>,
        #[command(flatten)]
        placement: Box<PlacementArgs>,
        #[command(flatten)]
        master: MasterRef,
    },
    /// List all datasets
    List {
        /// Only those of this namespace
        #[arg(long, short, value_name = "NAME", value_parser = namespace)]
        namespace: Option<String>,
        /// Output format
        #[arg(long, short, value_enum, default_value_t)]
        output: DatasetFormat,
        #[command(flatten)]
        master: MasterAddress,
    },
    /// Show one dataset: sources, snapshots, and what is left out
    Get {
        name: DatasetName,
        /// Output format
        #[arg(long, short, value_enum, default_value_t)]
        output: DatasetFormat,
        #[command(flatten)]
        master: MasterAddress,
    },
    /// Show where a dataset is cached: bytes on each node, in each group and zone
    Where {
        name: DatasetName,
        /// A file or a directory inside the dataset; all of it without one
        path: Option<String>,
        #[command(flatten)]
        master: MasterRef,
    },
    /// List the objects that a snapshot leaves out, and why; of each reason the first 2,000
    LeftOut {
        /// NAME for the newest snapshot, or NAME@SNAPSHOT
        name: DatasetRef,
        /// Only those of one reason, such as `excluded`
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        master: MasterRef,
    },
    /// Forget a dataset and drop its blocks; the origin is not touched
    Delete {
        name: DatasetName,
        #[command(flatten)]
        master: MasterRef,
    },
    /// List the origin again; makes a new snapshot when something changed
    Refresh {
        name: DatasetName,
        #[command(flatten)]
        master: MasterRef,
    },
}

#[derive(Subcommand)]
pub(crate) enum CredentialsCommand {
    /// Keep new credentials; what is secret of them comes from standard input or a file
    ///
    /// Without more, these are keys of S3: lines such as `access_key_id = …` and `secret_access_key = …`, the JSON of `aws
    /// configure export-credentials`, or a section of ~/.aws/credentials.
    Set {
        name: CredentialName,
        #[command(flatten)]
        new: NewCredentialArgs,
        #[command(flatten)]
        master: MasterRef,
    },
    /// Show names, kinds, who uses them, and when they were used last; never what is secret
    List {
        /// Only those of this namespace
        #[arg(long, short, value_name = "NAME", value_parser = namespace)]
        namespace: Option<String>,
        #[command(flatten)]
        master: MasterRef,
    },
    /// Put new ones of the same kind in the place of others; workers and mounts use them without a restart
    Rotate {
        name: CredentialName,
        #[command(flatten)]
        new: NewCredentialArgs,
        #[command(flatten)]
        master: MasterRef,
    },
    /// Forget credentials that no dataset uses
    Delete {
        name: CredentialName,
        #[command(flatten)]
        master: MasterRef,
    },
}

/// Credentials, without what is secret of them.
#[derive(Args, Clone, Default)]
pub(crate) struct NewCredentialArgs {
    /// File with what is secret; `-` is standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) from: PathBuf,
    /// A role that is assumed with the keys, or with --token-file
    #[arg(long, value_name = "ARN")]
    pub(crate) role_arn: Option<String>,
    /// The external id that the role's owner wants to see
    #[arg(long, value_name = "ID", requires = "role_arn")]
    pub(crate) external_id: Option<String>,
    /// File with the token of a web identity, on each machine that reads: a pod's, for instance
    #[arg(long, value_name = "PATH", conflicts_with_all = ["external_id", "principal", "header", "google", "azure_account", "azure_sas"])]
    pub(crate) token_file: Option<String>,
    /// Principal of a Kerberos keytab, USER@REALM
    #[arg(long, value_name = "NAME", conflicts_with_all = ["role_arn", "header"])]
    pub(crate) principal: Option<String>,
    /// Name of a header of HTTP requests, whose value is secret
    #[arg(long, value_name = "NAME", conflicts_with = "role_arn")]
    pub(crate) header: Option<String>,
    /// The JSON of a service account's key, or of a person's login, of Google Cloud
    #[arg(long, conflicts_with_all = ["role_arn", "principal", "header"])]
    pub(crate) google: bool,
    /// Storage account of Azure, whose key is secret
    #[arg(long, value_name = "NAME", conflicts_with_all = ["role_arn", "principal", "header", "google"])]
    pub(crate) azure_account: Option<String>,
    /// A shared access signature of Azure
    #[arg(long, conflicts_with_all = ["role_arn", "principal", "header", "google", "azure_account"])]
    pub(crate) azure_sas: bool,
    /// The service that they are for, such as `https://minio.lab:9000` or `hdfs://namenode:8020`; may be repeated
    /// [default: AWS, Google or Azure itself; none for a header and a keytab]
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Vec<String>,
    /// Taken to be refused: everybody on the machine sees arguments
    #[arg(long, value_name = "SECRET", hide = true, aliases = ["secret-key", "secret-access-key", "access-key", "access-key-id", "session-token", "token", "key", "password", "value", "keytab"])]
    pub(crate) secret: Option<String>,
    /// Taken to be refused, too
    #[arg(value_name = "SECRET", hide = true)]
    pub(crate) more: Vec<String>,
}

#[derive(Args)]
pub(crate) struct DevArgs {
    /// How many workers; each is a node of its own, `node-1` and so on
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) workers: u16,
    /// Zones that the workers stand in, by turns: `a`, `b` and so on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=26))]
    pub(crate) zones: Option<u8>,
    /// Directory for everything: datasets, caches, certificates, logs [default: a directory under the user's cache
    /// directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Port of the master on 127.0.0.1
    #[arg(long, value_name = "PORT", default_value_t = 7440)]
    pub(crate) port: u16,
    /// Size of each worker's memory tier
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) mem: ByteSize,
    /// Size of each worker's SSD tier
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub(crate) ssd: ByteSize,
}

#[derive(Subcommand)]
pub(crate) enum CertsCommand {
    /// Make an authority, which signs the certificates of a cluster; keep its directory where no server runs
    Init {
        /// The authority's directory
        ca: PathBuf,
        #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = days())]
        /// Days until it ends, and all that it has issued
        days: u16,
    },
    /// Make the certificate of a process or a person: ca.crt, tls.crt and tls.key
    Issue(IssueArgs),
    /// Show whom a certificate names and until when, or an authority
    Show {
        /// Directory of a certificate or an authority
        dir: PathBuf,
        /// Output format
        #[arg(long, short, value_enum, default_value_t)]
        output: OutputFormat,
    },
    /// Renew certificates, with new keys; processes that use them need not be restarted
    Rotate {
        /// The authority's directory
        ca: PathBuf,
        /// Directories of certificates
        #[arg(required_unless_present = "authority")]
        dirs: Vec<PathBuf>,
        /// Give the authority a new key, and have the directories trust both; renew them once all processes do
        #[arg(long)]
        authority: bool,
        /// Days until what is made ends [default: 365, for an authority 3650]
        #[arg(long, value_name = "DAYS", value_parser = days())]
        days: Option<u16>,
    },
}

#[derive(Args)]
pub(crate) struct IssueArgs {
    /// The authority's directory
    pub(crate) ca: PathBuf,
    /// Directory for the certificate and its key
    pub(crate) out: PathBuf,
    /// What it is: `master`, `worker`, `mount` or `admin` (people's commands)
    #[arg(long)]
    pub(crate) role: Role,
    /// Its name among those of its role; a worker's is its --id
    #[arg(long)]
    pub(crate) name: NodeName,
    /// Host name or IP address that a worker may claim to be reached at, beside those that it connects from; may be
    /// repeated
    #[arg(long, value_name = "HOST")]
    pub(crate) address: Vec<String>,
    /// Largest cache that a worker may claim, and with it the largest part of the cluster's blocks
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_weight: Option<ByteSize>,
    /// The only node that a worker or a mount may claim to run on, as its --node says
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<NodeName>,
    /// The only zone that a worker may claim to stand in
    #[arg(long, value_name = "NAME")]
    pub(crate) zone: Option<PlaceName>,
    /// The only group that a worker may claim to stand in
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<PlaceName>,
    /// The only pool that a worker may claim to belong to
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<PlaceName>,
    /// Days until it ends
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = days())]
    pub(crate) days: u16,
}

/// Which workers hold a dataset. With none of these the master chooses by its size.
#[derive(Args)]
pub(crate) struct PlacementArgs {
    /// How far one copy is spread: over a `node`, a `group`, a `zone` or the `cluster`; `auto` is the narrowest that holds it
    #[arg(long, value_name = "WHERE", value_parser = spread)]
    pub(crate) spread: Option<SpreadArg>,
    /// How many of them hold a copy: a number, or `all`
    #[arg(long, value_name = "N", requires = "spread")]
    pub(crate) copies: Option<Copies>,
    /// Zone, ZONE/GROUP or node that holds a copy; may be repeated
    #[arg(long = "in", value_name = "NAME", requires = "spread")]
    pub(crate) within: Vec<String>,
    /// Only workers of this pool hold it; without --spread one copy is spread over all of them
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<PlaceName>,
    /// Who keeps what it reads, beside them: `node`, the workers of the node that reads
    #[arg(long, value_name = "WHO")]
    pub(crate) keep: Option<Keep>,
}

/// A spread; none is the one that suits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpreadArg(Option<Spread>);

fn spread(text: &str) -> Result<SpreadArg, String> {
    if text == "auto" {
        return Ok(SpreadArg(None));
    }
    let spread = text.parse().map_err(|error| format!("{error}, or auto"))?;
    Ok(SpreadArg(Some(spread)))
}

impl PlacementArgs {
    /// What is asked for, if anything is.
    pub(crate) fn wanted(self) -> Option<Wanted> {
        if self.spread.is_none() && self.pool.is_none() && self.keep.is_none() {
            return None;
        }
        // A pool alone is one copy over its workers.
        let over_pool = self.pool.is_some().then_some(Spread::Cluster);
        let spread = self.spread.unwrap_or(SpreadArg(over_pool));
        Some(Wanted {
            spread: spread.0,
            copies: self.copies,
            within: self.within,
            pool: self.pool.map(String::from),
            keep: self.keep,
        })
    }
}

/// A place's name; none if it is empty, as a variable of the environment may be.
#[derive(Clone, Debug)]
pub(crate) struct MaybePlace(pub(crate) Option<PlaceName>);

fn place() -> impl TypedValueParser<Value = MaybePlace> {
    clap::builder::StringValueParser::new().try_map(|name| {
        let named = (!name.is_empty()).then(|| name.parse()).transpose();
        named.map(MaybePlace)
    })
}

fn namespace(text: &str) -> Result<String, String> {
    check_namespace(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn days() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=36_500)
}

#[derive(Args)]
pub(crate) struct WarmArgs {
    pub(crate) name: DatasetName,
    /// Paths inside the dataset; all of it without any
    pub(crate) paths: Vec<String>,
    /// Show progress and return when everything is cached; Ctrl-C stops the job, and the next one resumes it
    #[arg(long)]
    pub(crate) wait: bool,
    /// Warm only the copies that the dataset has there, by its placement: zone=NAME, group=ZONE/NAME or node=NAME; may be given
    /// several times
    #[arg(long = "in", value_name = "PLACE")]
    pub(crate) within: Vec<Place>,
    /// Of these, or of all, only the first so many copies
    #[arg(long, value_name = "N")]
    pub(crate) copies: Option<NonZeroU32>,
    #[command(flatten)]
    pub(crate) master: MasterRef,
}

#[derive(Args)]
pub(crate) struct EvictArgs {
    pub(crate) name: DatasetName,
    /// Paths inside the dataset; all of it without any
    pub(crate) paths: Vec<String>,
    #[command(flatten)]
    pub(crate) master: MasterRef,
}

#[derive(Args)]
pub(crate) struct StatusArgs {
    /// Only datasets of this namespace, and mounts of them
    #[arg(long, short, value_name = "NAME", value_parser = namespace)]
    pub(crate) namespace: Option<String>,
    #[command(flatten)]
    pub(crate) master: MasterRef,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_pool_alone_is_one_copy_over_its_workers() {
        let wanted = |args: &[&str]| {
            let create = ["weir", "dataset", "create", "set", "s3://b/p"];
            let args = create.iter().chain(args);
            let command = PlacementArgs::augment_args(clap::Command::new("weir"));
            let command = command.arg(clap::Arg::new("rest").num_args(0..));
            let matches = command.try_get_matches_from(args).unwrap();
            PlacementArgs::from_arg_matches(&matches).unwrap().wanted()
        };
        assert_eq!(wanted(&[]), None);
        let spread = |args: &[&str]| wanted(args).unwrap().spread;
        assert_eq!(spread(&["--pool", "gpu"]), Some(Spread::Cluster));
        assert_eq!(spread(&["--spread", "auto", "--pool", "gpu"]), None);
    }

    #[test]
    fn an_idle_time_is_a_time_or_never() {
        assert_eq!(idle_time("0s"), Ok(Duration::ZERO));
        assert_eq!(idle_time("2h"), Ok(Duration::from_hours(2)));
        assert_eq!(idle_time("never"), Ok(Duration::MAX));
        assert!(idle_time("soon").is_err());
    }

    #[test]
    fn an_ssd_tier_is_a_directory_and_a_size() {
        let ssd: SsdArg = "/a:b/c:50GiB".parse().unwrap();
        assert_eq!(ssd.dir, PathBuf::from("/a:b/c"));
        assert_eq!(ssd.size, ByteSize(50 << 30));
        for bad in ["/nvme", ":5GiB", "/nvme:many"] {
            assert!(bad.parse::<SsdArg>().is_err(), "{bad}");
        }
    }
}

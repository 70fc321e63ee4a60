//! A network of the test's own: a network namespace for each host, joined by bridges, on which packets can be dropped.
//!
//! A port of a bridge that is disabled drops what comes, and nobody is told: no reset, no unreachable, no link that is down. Every host
//! knows the addresses of the others for good, so that nobody finds out by asking for them either. A whole zone is cut off at the
//! one port that leads to its bridge; inside of it hosts go on hearing each other.

use std::ffi::OsStr;
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use weir_demo::ending::tell;

/// Hosts of one network at most: their names and addresses have room for so many.
const MAX_HOSTS: usize = 100;
/// Namespaces are named by this, the process that made them, and a number.
const NAMES: &str = "weir-test-";
/// Networks that this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);
/// States of a bridge's port.
const DISABLED: u8 = 0;
const FORWARDING: u8 = 3;

/// A network, until it is dropped: after everything that runs in it.
pub struct Network {
    /// What names of devices begin with: those have at most 15 characters.
    prefix: String,
    /// The third byte of its addresses.
    subnet: u8,
    /// The zone of each host; outside of all zones it is at the bridge in the middle.
    zones: Vec<Option<usize>>,
    bridges: Vec<String>,
    namespaces: Vec<String>,
}

impl Network {
    /// A network of a host for each of these zones, or why there cannot be one here.
    pub fn new(zones: &[Option<usize>]) -> Result<Self, String> {
        assert!(zones.len() <= MAX_HOSTS, "{} hosts", zones.len());
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        remove_leftovers();
        let mut network = Self {
            prefix: format!("w{process:x}{:x}", number % 16),
            subnet: free_subnet().ok_or("all of 198.18.0.0/16 is in use")?,
            zones: zones.to_vec(),
            bridges: Vec::new(),
            namespaces: Vec::new(),
        };
        for host in 0..zones.len() {
            let name = format!("{NAMES}{process}-{number}-{host}");
            run(Command::new("ip").args(["netns", "add", &name]), "")?;
            network.namespaces.push(name);
        }
        network.join_bridges()?;
        for host in 0..zones.len() {
            network.join_host(host)?;
        }
        Ok(network)
    }

    fn join_bridges(&mut self) -> Result<(), String> {
        let (outside, address) = (self.outside(), hardware(self.outside()));
        let middle = self.bridge(None);
        let mut batch = vec![
            format!("link add {middle} address {address} type bridge"),
            format!("link set {middle} up"),
            format!("addr add {outside}/24 dev {middle}"),
        ];
        self.bridges.push(middle.clone());
        let zones = self.zones.iter().flatten().max().map_or(0, |last| last + 1);
        for zone in 0..zones {
            let bridge = self.bridge(Some(zone));
            let (up, down) = (self.port_of_zone(zone), format!("{}d{zone}", self.prefix));
            batch.extend([
                format!("link add {bridge} type bridge"),
                format!("link set {bridge} up"),
                format!("link add {up} type veth peer name {down}"),
                format!("link set {up} master {middle} up"),
                format!("link set {down} master {bridge} up"),
            ]);
            self.bridges.push(bridge);
        }
        let hosts = (0..self.zones.len()).map(|host| self.address(host));
        batch.extend(hosts.map(|address| neighbour(address, &middle)));
        run(Command::new("ip").args(["-batch", "-"]), &batch.join("\n"))
    }

    fn join_host(&self, host: usize) -> Result<(), String> {
        let (port, namespace) = (self.port(host), &self.namespaces[host]);
        let (bridge, address) = (self.bridge(self.zones[host]), self.address(host));
        let own = hardware(address);
        let outside = [
            format!("link add {port} type veth peer name eth0 address {own} netns {namespace}"),
            format!("link set {port} master {bridge} up"),
        ];
        run(
            Command::new("ip").args(["-batch", "-"]),
            &outside.join("\n"),
        )?;
        let mut inside = vec![
            "link set lo up".to_owned(),
            format!("addr add {address}/24 dev eth0"),
            "link set eth0 up".to_owned(),
        ];
        let others = (0..self.zones.len()).filter(|other| *other != host);
        let others = others.map(|other| self.address(other));
        let others = others.chain([self.outside()]);
        inside.extend(others.map(|other| neighbour(other, "eth0")));
        let mut command = Command::new("ip");
        run(
            command.args(["-n", namespace, "-batch", "-"]),
            &inside.join("\n"),
        )
    }

    fn bridge(&self, zone: Option<usize>) -> String {
        match zone {
            None => format!("{}m", self.prefix),
            Some(zone) => format!("{}z{zone}", self.prefix),
        }
    }

    fn port(&self, host: usize) -> String {
        format!("{}h{host}", self.prefix)
    }

    fn port_of_zone(&self, zone: usize) -> String {
        format!("{}u{zone}", self.prefix)
    }

    /// How many hosts it has.
    pub fn hosts(&self) -> usize {
        self.zones.len()
    }

    /// The address of the test itself, which is in no namespace.
    pub fn outside(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.subnet, 1)
    }

    /// The address of a host.
    pub fn address(&self, host: usize) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.subnet, 10 + host as u8)
    }

    /// A command that runs another one on a host, in the same process.
    pub fn command(&self, host: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespaces[host]))
            .arg(program);
        command
    }

    /// Drops all packets of a host from now on, or no more.
    #[track_caller]
    pub fn cut(&self, host: usize, cut: bool) {
        set(&self.port(host), cut);
    }

    /// Drops what would leave or enter a zone from now on, or no more.
    #[track_caller]
    pub fn cut_zone(&self, zone: usize, cut: bool) {
        set(&self.port_of_zone(zone), cut);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            remove(&["netns", "del", namespace]);
        }
        for bridge in &self.bridges {
            remove(&["link", "del", bridge]);
        }
        // The other ends of these go with them.
        for zone in 1..self.bridges.len() {
            remove(&["link", "del", &self.port_of_zone(zone - 1)]);
        }
    }
}

#[track_caller]
fn set(port: &str, cut: bool) {
    let state = if cut { DISABLED } else { FORWARDING };
    let mut command = Command::new("bridge");
    command.args(["link", "set", "dev", port, "state", &state.to_string()]);
    run(&mut command, "").unwrap();
}

/// Tells a device where an address is, for good.
fn neighbour(address: Ipv4Addr, device: &str) -> String {
    let hardware = hardware(address);
    format!("neigh replace {address} lladdr {hardware} dev {device} nud permanent")
}

fn hardware(address: Ipv4Addr) -> String {
    let [.., subnet, host] = address.octets();
    format!("02:57:65:69:{subnet:02x}:{host:02x}")
}

/// One of which this machine has no address.
fn free_subnet() -> Option<u8> {
    let first = std::process::id() as u8;
    (0..=u8::MAX)
        .map(|n| first.wrapping_add(n))
        .find(|subnet| UdpSocket::bind((Ipv4Addr::new(198, 18, *subnet, 1), 0)).is_err())
}

/// Removes the namespaces of processes that were killed.
fn remove_leftovers() {
    for found in std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = found.file_name().to_string_lossy().into_owned();
        let process = name
            .strip_prefix(NAMES)
            .and_then(|rest| rest.split('-').next());
        let process = process.and_then(|process| process.parse::<u32>().ok());
        if process
            .is_some_and(|process| !std::path::Path::new(&format!("/proc/{process}")).exists())
        {
            remove(&["netns", "del", &name]);
        }
    }
}

fn remove(args: &[&str]) {
    if let Err(error) = run(Command::new("ip").args(args), "") {
        tell(format_args!("{error}"));
    }
}

fn run(command: &mut Command, input: &str) -> Result<(), String> {
    let what = format!("{command:?}");
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(|error| format!("{what}: {error}"))?;
    let written = child
        .stdin
        .take()
        .map(|mut pipe| pipe.write_all(input.as_bytes()));
    let output = child
        .wait_with_output()
        .map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() && !matches!(written, Some(Err(_))) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{what}: {}", said.trim()))
}

//! Whose a port of this machine is.
//!
//! Without certificates a master knows its callers by their user, and a caller nothing of the master: when that is down, any
//! user of the machine may listen at its port. What is secret is sent there only if the listener is of the same user or root.

use std::path::Path;

/// State of a socket that listens, in the kernel's table.
const LISTEN: &str = "0A";

/// Users that listen on a TCP port of this machine.
pub(super) fn users(port: u16) -> Vec<u32> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(Path::new);
    let tables = tables.map(|table| std::fs::read_to_string(table).unwrap_or_default());
    tables
        .iter()
        .flat_map(|table| listeners(table, port))
        .collect()
}

/// Users that listen on a port, by one of the kernel's tables.
fn listeners(table: &str, port: u16) -> impl Iterator<Item = u32> {
    table.lines().skip(1).filter_map(move |row| {
        let mut fields = row.split_ascii_whitespace();
        let (_, of) = fields.nth(1)?.rsplit_once(':')?;
        let is_listening = fields.nth(1)? == LISTEN;
        let fits = is_listening && u16::from_str_radix(of, 16) == Ok(port);
        fits.then(|| fields.nth(3)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_kernel_is_understood() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   0: 0100007F:1D10 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 73 1\n   1: 0100007F:1D10 0100007F:C001 01 00000000:00000000 00:00000000 00000000    33        0 74 1\n   2: 0100007F:1D11 00000000:0000 0A 00000000:00000000 00:00000000 00000000    34        0 75 1\n";
        assert_eq!(listeners(table, 0x1d10).collect::<Vec<_>>(), [1000]);
        assert_eq!(listeners("header\nodd", 1).count(), 0);
    }

    #[test]
    fn an_own_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(users(port), [rustix::process::geteuid().as_raw()]);
        drop(listener);
        assert!(users(port).is_empty());
    }
}

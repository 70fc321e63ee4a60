//! What messages repeat of a service's words and of addresses: never a secret, and never what breaks a line.

/// Characters of a service's word that messages repeat.
const MAX_SHOWN: usize = 200;

/// A service's words in a message: not too many, and without what breaks a line.
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .take(MAX_SHOWN)
        .flat_map(char::escape_debug)
        .collect()
}

/// An address without what could hold a secret: its user, its query.
pub(crate) fn plain(location: &str) -> String {
    let location = location.split(['?', '#']).next().unwrap_or_default();
    let shown = shown(location);
    match shown.split_once("://") {
        Some((scheme, rest)) => {
            let host_begins = rest.split('/').next().and_then(|host| host.rfind('@'));
            format!("{scheme}://{}", &rest[host_begins.map_or(0, |at| at + 1)..])
        }
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_a_message_has_no_secret() {
        assert_eq!(plain("https://u:p@h/x?sig=s"), "https://h/x");
        assert_eq!(plain("/x?sig=s"), "/x");
    }
}

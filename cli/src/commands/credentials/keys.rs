//! Keys of S3 as people have them: lines of settings, as in a profile or a script, or the JSON of AWS's tools.

use serde::Deserialize;
use weir_proto::v1;
use zeroize::Zeroizing;

use crate::exit::{Failure, Reason};

/// What is asked for.
pub(super) const WANTED: &str = "the lines `access_key_id = …` and `secret_access_key = …`, and `session_token = …` if there is one; or the JSON of `aws configure export-credentials`";

/// Reads keys. A message repeats nothing of them.
pub(super) fn read(text: &[u8]) -> Result<v1::StaticKeys, Failure> {
    let found = std::str::from_utf8(text).ok().and_then(|text| {
        if text.trim_start().starts_with('{') {
            json(text)
        } else {
            lines(text)
        }
    });
    found.ok_or_else(|| {
        Failure::new(
            Reason::Usage,
            format!("what was read has no keys of S3, or those of several profiles; give {WANTED}"),
        )
    })
}

/// What `credential_process` programs print, and `aws sts`.
fn json(text: &str) -> Option<v1::StaticKeys> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Printed {
        access_key_id: String,
        secret_access_key: String,
        session_token: Option<String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Wrapped {
        credentials: Printed,
    }
    let printed = serde_json::from_str(text);
    let printed = printed.or_else(|_| {
        let wrapped: Result<Wrapped, _> = serde_json::from_str(text);
        wrapped.map(|wrapped| wrapped.credentials)
    });
    let printed: Printed = printed.ok()?;
    Some(v1::StaticKeys {
        access_key: printed.access_key_id,
        secret_key: printed.secret_access_key,
        session_token: printed.session_token.unwrap_or_default(),
    })
}

/// `aws_access_key_id = …`, `export AWS_ACCESS_KEY_ID="…"`, `access_key_id: …`. Lines of other settings are skipped, and
/// of two profiles neither is meant.
fn lines(text: &str) -> Option<v1::StaticKeys> {
    let mut found = [const { None }; 3];
    for line in text.lines() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once(['=', ':']) else {
            continue;
        };
        let name = name.trim().to_ascii_lowercase();
        let number = match name.strip_prefix("aws_").unwrap_or(&name) {
            "access_key_id" => 0,
            "secret_access_key" => 1,
            "session_token" => 2,
            _ => continue,
        };
        let value = value.trim().trim_matches(['"', '\'']);
        let value = Zeroizing::new(value.to_owned());
        if found[number].replace(value).is_some() {
            return None;
        }
    }
    let [access_key, secret_key, token] = found;
    Some(v1::StaticKeys {
        access_key: access_key?.to_string(),
        secret_key: secret_key?.to_string(),
        session_token: token.map(|token| token.to_string()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_people_have_them() {
        for text in [
            "access_key_id = AK\nsecret_access_key = s/+=\nsession_token = tok\n",
            "[team]\naws_access_key_id=AK\naws_secret_access_key=s/+=\naws_session_token=tok\nregion=x",
            "export AWS_ACCESS_KEY_ID=\"AK\"\nexport AWS_SECRET_ACCESS_KEY='s/+='\r\nAWS_SESSION_TOKEN=tok",
            "access_key_id: AK\nsecret_access_key: s/+=\nsession_token: tok",
            r#" {"Version":1,"AccessKeyId":"AK","SecretAccessKey":"s/+=","SessionToken":"tok","Expiration":"x"}"#,
            r#"{"Credentials":{"AccessKeyId":"AK","SecretAccessKey":"s/+=","SessionToken":"tok"}}"#,
        ] {
            let keys = read(text.as_bytes()).unwrap();
            assert_eq!(
                (&*keys.access_key, &*keys.secret_key, &*keys.session_token),
                ("AK", "s/+=", "tok"),
                "{text}"
            );
        }
        let keys = read(b"access_key_id=AK\nsecret_access_key=s").unwrap();
        assert_eq!(keys.session_token, "");
    }

    #[test]
    fn what_has_no_keys_is_refused_and_not_repeated() {
        for text in [
            "hunter2",
            "access_key_id = hunter2",
            "secret_access_key = hunter2",
            r#"{"AccessKeyId":"hunter2"}"#,
            "[a]\naws_access_key_id=hunter2\naws_secret_access_key=s\n[b]\naws_access_key_id=C\naws_secret_access_key=t",
        ] {
            let failure = read(text.as_bytes()).unwrap_err();
            assert!(
                !failure.message().contains("hunter2"),
                "{}",
                failure.message()
            );
            assert!(failure.message().contains("secret_access_key"));
        }
        assert!(read(b"\xff\xfe").is_err());
    }
}

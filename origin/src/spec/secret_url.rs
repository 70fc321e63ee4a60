//! URLs with a secret in them: a user and a password, or a signature. They are refused, since a specification is stored and
//! shown, and messages do not repeat what may be one.

use super::OriginSpec;
use crate::error::OriginError;

/// What a query has that is signed, in small letters: of AWS and of Google, of Azure, of OSS and of older S3.
const SIGNATURES: [&str; 4] = ["x-amz-", "x-goog-", "sig=", "signature="];

/// The URL as messages show it.
pub(super) fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    if user(scheme, rest).is_some() {
        return format!("{scheme}://…");
    }
    match signature(url) {
        // A directory's name has no query.
        Some(_) if scheme == "file" => url.to_owned(),
        Some(at) => format!("{}?…", &url[..at]),
        None => url.to_owned(),
    }
}

impl OriginSpec {
    /// Refuses a URL with a secret in it. Those of web servers have rules of their own.
    pub(super) fn check_no_secret(&self) -> Result<(), OriginError> {
        let Some((scheme, rest)) = self.url.split_once("://") else {
            return Ok(());
        };
        if matches!(scheme, "http" | "https" | "file") {
            return Ok(());
        }
        if user(scheme, rest).is_some() {
            let remedy = match scheme {
                "hdfs" => {
                    "write hdfs://NAMENODE:PORT/dir, and the user as HADOOP_USER_NAME or hdfs.user"
                }
                _ => {
                    "leave it out; keys come from the environment, or from credentials that the master keeps (`weir credentials set`)"
                }
            };
            return Err(self.wrong(
                "it holds a user name or password, which would be stored with the dataset",
                remedy,
            ));
        }
        if signature(&self.url).is_some() {
            return Err(self.wrong(
                "it holds a signature, which would be stored with the dataset",
                "leave it out; keys come from the environment, or from credentials that the master keeps (`weir credentials set`)",
            ));
        }
        Ok(())
    }
}

/// The user that a URL names before its host. In Azure's URLs a container stands there.
fn user<'a>(scheme: &str, rest: &'a str) -> Option<&'a str> {
    let authority = rest.split('/').next().unwrap_or_default();
    let Some((user, _)) = authority.rsplit_once('@') else {
        // A password may have slashes. What stands behind a colon otherwise is a port.
        let (before, port) = authority.rsplit_once(':')?;
        let is_port = before.ends_with(']') || port.parse::<u16>().is_ok();
        return (!is_port && rest.contains('@')).then_some(authority);
    };
    let is_container = matches!(scheme, "az" | "azure" | "abfs" | "abfss" | "wasb" | "wasbs");
    (!is_container || user.contains([':', '@'])).then_some(user)
}

/// Where the query of a URL begins that has a signature.
fn signature(url: &str) -> Option<usize> {
    let at = url.find('?')?;
    let query = url[at..].to_ascii_lowercase();
    SIGNATURES
        .iter()
        .any(|name| query.contains(name))
        .then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        for url in [
            "s3://AK:hunter2@bucket/p",
            "s3://hunter2@bucket",
            "gs://AK:hunter2@bucket",
            "oss://AK:hunter2@bucket/p",
            "hdfs://user:hunter2@nn:8020/d",
            "s3://AK:hun/ter2@bucket/p",
            "hdfs://user:hun/ter2@nn:8020/d",
            "az://acct:hunter2@container/p",
            "abfss://c:hunter2@acct.dfs.core.windows.net/p",
            "s4://AK:hunter2@bucket",
            "s3://bucket/p?X-Amz-Credential=a&X-Amz-Signature=hunter2",
            "gs://bucket/p?X-Goog-Signature=hunter2",
            "az://container/p?sv=2020&sig=hunter2",
            "oss://bucket/p?Expires=1&Signature=hunter2",
            "s4://bucket?sig=hunter2",
        ] {
            let error = OriginSpec::parse(url).unwrap_err().to_string();
            assert!(!error.contains("ter2"), "{error}");
            assert!(error.contains("it holds a"), "{error}");
        }
        let error = OriginSpec::parse("hdfs://alice@nn/d").unwrap_err();
        assert!(error.to_string().contains("hdfs.user"), "{error}");
    }

    #[test]
    fn what_only_looks_like_one_is_a_key_like_any_other() {
        for url in [
            "s3://bucket/a@b:c/d",
            "hdfs://nn:8020/a@b",
            "s3://bucket/what?x=1",
            "s3://bucket/sig=1/x",
            "abfss://container@acct.dfs.core.windows.net/p",
            "file:///a@b?sig=c",
        ] {
            OriginSpec::parse(url).unwrap();
            assert_eq!(shown(url), url);
        }
    }
}

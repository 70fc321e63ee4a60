//! The spec in messages of the protocol. An absent option is an empty string there.

use weir_proto::v1;

use super::{Addressing, HdfsOptions, OriginSpec};

impl From<v1::OriginSpec> for OriginSpec {
    fn from(message: v1::OriginSpec) -> Self {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let addressing = match message.addressing() {
            v1::Addressing::Unspecified => Addressing::Auto,
            v1::Addressing::Path => Addressing::Path,
            v1::Addressing::Virtual => Addressing::Virtual,
        };
        Self {
            url: message.url,
            endpoint: some(message.endpoint),
            region: some(message.region),
            addressing,
            anonymous: message.anonymous,
            profile: some(message.profile),
            patience_seconds: Some(message.patience_seconds).filter(|seconds| *seconds != 0),
            credentials: some(message.credentials),
            hdfs: message.hdfs.map(HdfsOptions::from).unwrap_or_default(),
        }
    }
}

impl From<OriginSpec> for v1::OriginSpec {
    fn from(spec: OriginSpec) -> Self {
        let addressing = match spec.addressing {
            Addressing::Auto => v1::Addressing::Unspecified,
            Addressing::Path => v1::Addressing::Path,
            Addressing::Virtual => v1::Addressing::Virtual,
        };
        Self {
            url: spec.url,
            endpoint: spec.endpoint.unwrap_or_default(),
            region: spec.region.unwrap_or_default(),
            addressing: addressing.into(),
            anonymous: spec.anonymous,
            profile: spec.profile.unwrap_or_default(),
            patience_seconds: spec.patience_seconds.unwrap_or_default(),
            credentials: spec.credentials.unwrap_or_default(),
            hdfs: (!spec.hdfs.is_empty()).then(|| spec.hdfs.into()),
        }
    }
}

impl From<v1::HdfsOptions> for HdfsOptions {
    fn from(message: v1::HdfsOptions) -> Self {
        Self {
            user: Some(message.user).filter(|user| !user.is_empty()),
            config: message.config.into_iter().collect(),
        }
    }
}

impl From<HdfsOptions> for v1::HdfsOptions {
    fn from(options: HdfsOptions) -> Self {
        Self {
            user: options.user.unwrap_or_default(),
            config: options.config.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_the_protocol_and_json() {
        for addressing in [Addressing::Auto, Addressing::Path, Addressing::Virtual] {
            let spec = OriginSpec {
                url: "s3://bucket/p".to_owned(),
                endpoint: Some("http://host:9000".to_owned()),
                region: None,
                addressing,
                anonymous: true,
                profile: Some("dev".to_owned()),
                patience_seconds: Some(600),
                credentials: Some("team".to_owned()),
                hdfs: HdfsOptions {
                    user: Some("alice".to_owned()),
                    config: [(
                        "hadoop.security.authentication".to_owned(),
                        "simple".to_owned(),
                    )]
                    .into(),
                },
            };
            assert_eq!(OriginSpec::from(v1::OriginSpec::from(spec.clone())), spec);
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<OriginSpec>(&json).unwrap(), spec);
        }
    }

    #[test]
    fn an_addressing_of_a_newer_version_is_taken_as_automatic() {
        let message = v1::OriginSpec {
            url: "s3://bucket".to_owned(),
            addressing: 99,
            ..Default::default()
        };
        assert_eq!(OriginSpec::from(message).addressing, Addressing::Auto);
    }
}

//! The shared AWS configuration files: profiles, sessions of single sign-on, and endpoints of services.
//!
//! Files are read as AWS's tools read them: names may be quoted, settings may be in capitals and indented, and a setting
//! without a value is a group of the indented ones below it (`s3.endpoint_url`). A file that a variable names must be
//! there; one of the user's home need not.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use weir_core::read_settings;

use crate::error::OriginError;
use crate::transport::environment::{Environment, unreadable};

/// The variable that moves a file, and where the file is without it.
const CREDENTIALS: (&str, &str) = ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
const CONFIG: (&str, &str) = ("AWS_CONFIG_FILE", ".aws/config");

/// The settings below one header, by their names in lower case. Deliberately without Debug: some are secrets.
#[derive(Default, Clone)]
pub(super) struct Section(HashMap<String, String>);

impl Section {
    /// A setting that is not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

/// What both files say.
#[derive(Default)]
pub(super) struct Profiles {
    profiles: HashMap<String, Section>,
    sessions: HashMap<String, Section>,
    services: HashMap<String, Section>,
    /// Where they were looked for, and which of them is there and cannot be read.
    places: Vec<PathBuf>,
    pub(super) unreadable: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Credentials,
    Config,
}

/// What a header says of the settings below it.
#[derive(PartialEq, Eq, Debug)]
enum Header {
    Profile(String),
    /// `[name]` in the configuration file, which other tools ignore.
    Bare(String),
    Session(String),
    Services(String),
    Other,
}

impl Profiles {
    /// Reads the files that the environment names, or those of the user.
    pub(super) fn read(origin: &Arc<str>, environment: &Environment) -> Result<Self, OriginError> {
        let mut found = Self::default();
        let config = found.file(origin, environment, CONFIG)?;
        let credentials = found.file(origin, environment, CREDENTIALS)?;
        found.fill(&credentials, &config);
        Ok(found)
    }

    #[cfg(test)]
    pub(super) fn parse(credentials: &str, config: &str) -> Self {
        let mut found = Self::default();
        found.fill(credentials, config);
        found
    }

    /// A profile by its name.
    pub(super) fn get(&self, name: &str) -> Option<&Section> {
        self.profiles.get(name)
    }

    /// A session of single sign-on by its name.
    pub(super) fn session(&self, name: &str) -> Option<&Section> {
        self.sessions.get(name)
    }

    /// Settings of services by their name.
    pub(super) fn services(&self, name: &str) -> Option<&Section> {
        self.services.get(name)
    }

    /// The error that there is no such profile.
    pub(super) fn missing(&self, origin: &Arc<str>, name: &str) -> OriginError {
        let places: Vec<_> = self
            .places
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let places = match places.as_slice() {
            [] => "no file, since HOME is not set".to_owned(),
            some => some.join(" nor "),
        };
        let unreadable = self.unreadable.as_deref();
        let unreadable = unreadable.map_or_else(String::new, |why| format!(" ({why})"));
        OriginError::config(
            origin.clone(),
            format!("the profile {name:?} is in neither {places}{unreadable}"),
            "check --profile, AWS_PROFILE and source_profile",
        )
    }

    fn file(
        &mut self,
        origin: &Arc<str>,
        environment: &Environment,
        (variable, default): (&str, &str),
    ) -> Result<String, OriginError> {
        let named = environment.path(variable);
        let is_named = named.is_some();
        let Some(path) = named.or_else(|| environment.at_home(default)) else {
            return Ok(String::new());
        };
        let content = read_settings(&path);
        self.places.push(path.clone());
        let error = match content {
            Ok(content) => return Ok(String::from_utf8_lossy(&content).into_owned()),
            Err(error) => error,
        };
        if is_named {
            return Err(unreadable(origin, variable, &path, &error));
        }
        let is_absent = matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        );
        if !is_absent {
            self.unreadable = Some(format!("{} cannot be read: {error}", path.display()));
        }
        Ok(String::new())
    }

    /// Later ones win: keys of the credentials file over those of the configuration file.
    fn fill(&mut self, credentials: &str, config: &str) {
        let config = sections(config, Kind::Config);
        let credentials = sections(credentials, Kind::Credentials);
        let (bare, config): (Vec<_>, Vec<_>) = config
            .into_iter()
            .partition(|(header, _)| matches!(header, Header::Bare(_)));
        for (header, section) in bare.into_iter().chain(config).chain(credentials) {
            let (table, name) = match header {
                Header::Profile(name) | Header::Bare(name) => (&mut self.profiles, name),
                Header::Session(name) => (&mut self.sessions, name),
                Header::Services(name) => (&mut self.services, name),
                Header::Other => continue,
            };
            table.entry(name).or_default().0.extend(section.0);
        }
    }
}

/// The sections of a file, in its order.
fn sections(text: &str, kind: Kind) -> Vec<(Header, Section)> {
    let mut found: Vec<(Header, Section)> = Vec::new();
    // The last setting, and how far it was indented.
    let mut last: Option<(String, usize)> = None;
    for line in text.trim_start_matches('\u{feff}').lines() {
        let indented = line.len() - line.trim_start().len();
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(inner) = line.strip_prefix('[') {
            let header = match inner.split_once(']') {
                Some((inner, _)) => header(inner, kind),
                None => Header::Other,
            };
            found.push((header, Section::default()));
            last = None;
            continue;
        }
        let Some((_, Section(settings))) = found.last_mut() else {
            continue;
        };
        let setting = line
            .split_once(['=', ':'])
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim()));
        match (&last, setting) {
            (Some((above, by)), setting) if indented > *by => {
                let group = settings.get(above).is_some_and(String::is_empty);
                match setting {
                    Some((name, value)) if group => {
                        settings.insert(format!("{above}.{name}"), value.to_owned());
                    }
                    _ if !group => {
                        if let Some(value) = settings.get_mut(above) {
                            value.push('\n');
                            value.push_str(line);
                        }
                    }
                    _ => {}
                }
            }
            (_, Some((name, value))) => {
                settings.insert(name.clone(), value.to_owned());
                last = Some((name, indented));
            }
            (_, None) => {}
        }
    }
    found
}

/// What stands between the brackets.
fn header(text: &str, kind: Kind) -> Header {
    let text = text.trim();
    let bare = || {
        let name = unquoted(text);
        match kind {
            Kind::Credentials => Header::Profile(name),
            Kind::Config if name == "default" => Header::Profile(name),
            Kind::Config => Header::Bare(name),
        }
    };
    if kind == Kind::Credentials {
        return bare();
    }
    let Some((word, name)) = text.split_once([' ', '\t']) else {
        return bare();
    };
    let name = unquoted(name.trim());
    match word.to_ascii_lowercase().as_str() {
        "profile" => Header::Profile(name),
        "sso-session" => Header::Session(name),
        "services" => Header::Services(name),
        _ if text.starts_with(['"', '\'']) => bare(),
        _ => Header::Other,
    }
}

/// A name without the quotes around it.
fn unquoted(name: &str) -> String {
    let inner = |quote: char| name.strip_prefix(quote)?.strip_suffix(quote);
    inner('"')
        .or_else(|| inner('\''))
        .unwrap_or(name)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "\
# comment\n\
[default]\n\
aws_access_key_id = A\n\
aws_secret_access_key=B=/+\r\n\
[other]\n\
aws_access_key_id = C\n\
aws_secret_access_key = D\n\
aws_session_token = E\n\
[my name]\n\
AWS_ACCESS_KEY_ID: F\n";
    const CONFIG: &str = "\
[default]\n\
region = eu-west-1\n\
[profile other]\n\
region = us-west-2\n\
endpoint_url = http://h:1\n\
s3 =\n\
\x20 addressing_style = path\n\
\x20 region = not-this\n\
output = json\n\
[ profile  \"my name\" ] # a comment\n\
Region = us-east-2\n\
[profile 'single']\n\
\x20 REGION = indented\n\
\x20 credential_process = first\n\
\x20   second\n\
[profile empty]\n\
[sso-session corp]\n\
sso_region = us-east-1\n\
[services local]\n\
sts =\n\
\x20 endpoint_url = http://sts:1\n\
s3 =\n\
\tendpoint_url = http://s3:1\n\
[plain]\n\
region = lenient\n\
[plugins]\n\
[profile plain]\n\
output = text\n";

    fn get(name: &str, setting: &str) -> Option<String> {
        let profiles = Profiles::parse(CREDENTIALS, CONFIG);
        Some(profiles.get(name)?.get(setting)?.to_owned())
    }

    #[test]
    fn a_profile_is_put_together_from_both_files() {
        for (profile, setting, value) in [
            ("default", "region", Some("eu-west-1")),
            ("default", "aws_secret_access_key", Some("B=/+")),
            ("other", "region", Some("us-west-2")),
            ("other", "endpoint_url", Some("http://h:1")),
            ("other", "aws_session_token", Some("E")),
            ("other", "output", Some("json")),
            ("other", "s3.addressing_style", Some("path")),
            ("my name", "region", Some("us-east-2")),
            ("my name", "aws_access_key_id", Some("F")),
            ("single", "region", Some("indented")),
            ("single", "credential_process", Some("first\nsecond")),
            ("plain", "region", Some("lenient")),
            ("plain", "output", Some("text")),
            ("empty", "region", None),
        ] {
            assert_eq!(
                get(profile, setting).as_deref(),
                value,
                "{profile} {setting}"
            );
        }
        let profiles = Profiles::parse(CREDENTIALS, CONFIG);
        assert!(profiles.get("empty").is_some() && profiles.get("absent").is_none());
        assert!(profiles.get("corp").is_none() && profiles.get("\"my name\"").is_none());
        let session = profiles.session("corp").unwrap();
        assert_eq!(session.get("sso_region"), Some("us-east-1"));
        let local = profiles.services("local").unwrap();
        assert_eq!(local.get("sts.endpoint_url"), Some("http://sts:1"));
        assert_eq!(local.get("s3.endpoint_url"), Some("http://s3:1"));
    }

    #[test]
    fn a_file_that_a_variable_names_must_be_readable_and_one_of_the_home_need_not_be_there() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
        let origin: Arc<str> = "s3://b".into();
        let read = |variables: &[(&str, &str)]| {
            let home = home.path().to_str().unwrap();
            let variables = variables.iter().copied().chain([("HOME", home)]);
            Profiles::read(&origin, &Environment::of(variables))
        };
        assert!(read(&[]).unwrap().get("default").is_none());
        std::fs::create_dir(home.path().join("directory")).unwrap();
        for variable in ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
            for (path, shown) in [("~/gone", at("gone")), (&at("directory"), at("directory"))] {
                let error = read(&[(variable, path)]).err().unwrap();
                assert_eq!(error.kind(), "config");
                let error = error.to_string();
                assert!(
                    error.contains(variable) && error.contains(&shown),
                    "{error}"
                );
            }
            let pipe = home.path().join(variable);
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
            rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
            let error = read(&[(variable, pipe.to_str().unwrap())]).err().unwrap();
            let error = error.to_string();
            assert!(
                error.contains("a pipe") && error.contains(variable),
                "{error}"
            );
            read(&[(variable, "")]).unwrap();
            read(&[(variable, "/dev/null")]).unwrap();
        }
        std::fs::write(at("mine"), "[profile there]\nregion = r\n").unwrap();
        let found = read(&[("AWS_CONFIG_FILE", "~/mine")]).unwrap();
        assert_eq!(found.get("there").unwrap().get("region"), Some("r"));
        // What is there and cannot be read is said when a profile is missed.
        std::fs::create_dir_all(home.path().join(".aws/config")).unwrap();
        let error = read(&[]).unwrap().missing(&origin, "work").to_string();
        assert!(
            error.contains("cannot be read") && error.contains("\"work\""),
            "{error}"
        );
    }

    #[test]
    fn fuzz_profiles_of_any_bytes() {
        weir_fuzz::Target::new("profile")
            .seed(CREDENTIALS)
            .seed(CONFIG)
            .words(&[
                "[",
                "]",
                "[default]",
                "[profile other]",
                "[profile \"a b\"]",
                "=",
                ":",
                "#",
                ";",
                "\r\n",
                "\n  ",
                "\u{feff}",
                "region",
            ])
            .run(|text| {
                let text = String::from_utf8_lossy(text);
                let (first, second) = text.split_at(text.floor_char_boundary(text.len() / 2));
                let profiles = Profiles::parse(first, second);
                let found = ["default", "other", ""]
                    .map(|name| profiles.get(name).map(|section| section.0.len()));
                (found, text.lines().count().min(3))
            });
    }
}

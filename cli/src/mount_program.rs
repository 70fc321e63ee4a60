//! Weir as the program that mount(8) runs for a line of /etc/fstab or a mount unit of systemd.
//!
//! As `mount.weir` it gets `SOURCE DIR [-sfnv] [-o OPTIONS] [-t TYPE]`; mount.fuse(8) runs `weir SOURCE DIR -o OPTIONS` for
//! the type `fuse.weir`. Options are the long flags of `weir mount`, with `_` or `-`, and those of every file system that
//! mean nothing here or are so anyway. All others are an error: an option that is ignored is one that somebody relies on.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use rustix::mount::MountFlags;

use crate::args::{Cli, Command};
use crate::exit::Failure;
use crate::output;

/// Exit codes of mount(8).
const USAGE: u8 = 1;
const FAILED: u8 = 32;

/// Names that it is run by.
const NAMES: [&str; 2] = ["mount.weir", "mount.fuse.weir"];

/// Options that other programs act upon, and those that are so or make no difference: a mount of Weir is read-only, and
/// shows no devices, programs with set-uid bits or access times.
const NO_MATTER: [&str; 39] = [
    "",
    "defaults",
    "rw",
    "ro",
    "_netdev",
    "auto",
    "noauto",
    "nofail",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "async",
    "sync",
    "dirsync",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
    "silent",
    "loud",
    "nonempty",
    "default_permissions",
];

/// Flags of `weir mount` that are of no use here.
const NOT_HERE: [&str; 2] = ["foreground", "help"];

/// What mount(8) wants.
#[derive(Debug, PartialEq, Eq, Default)]
struct Wanted {
    /// The arguments of `weir`, its name first.
    args: Vec<OsString>,
    /// No program may be run from it.
    noexec: bool,
    /// Check, and do not mount.
    fake: bool,
    verbose: bool,
}

/// Mounts, if this process was started to do so in mount(8)'s way.
pub(crate) fn run(
    args: &[OsString],
    run: impl FnOnce(Cli) -> Result<ExitCode, Failure>,
) -> Option<ExitCode> {
    let rest = arguments(args)?;
    let wanted = match translate(rest) {
        Ok(wanted) => wanted,
        Err(problem) => {
            output::note(format_args!("mount.weir: {problem}"));
            return Some(ExitCode::from(USAGE));
        }
    };
    let cli = match Cli::try_parse_from(&wanted.args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return Some(ExitCode::from(USAGE));
        }
    };
    if wanted.verbose {
        let words: Vec<_> = wanted
            .args
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        output::note(format_args!("mount.weir: {}", words.join(" ")));
    }
    if wanted.fake {
        return Some(ExitCode::SUCCESS);
    }
    let dir = match &cli.command {
        Command::Mount(args) => args.dir.clone(),
        _ => return Some(ExitCode::from(USAGE)),
    };
    if let Err(failure) = run(cli) {
        output::report(&failure);
        return Some(ExitCode::from(FAILED));
    }
    if wanted.noexec
        && let Err(error) = forbid_programs(&dir)
    {
        let dir = dir.display();
        output::note(format_args!(
            "mount.weir: {dir} is mounted, but not with noexec: {error}; `weir unmount {dir}`, and mount it without"
        ));
        return Some(ExitCode::from(FAILED));
    }
    Some(ExitCode::SUCCESS)
}

fn forbid_programs(dir: &Path) -> rustix::io::Result<()> {
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOATIME
        | MountFlags::NOEXEC;
    rustix::mount::mount_remount(dir, flags, "")
}

/// The arguments behind the name, if they are those of a program of mount(8).
fn arguments(args: &[OsString]) -> Option<&[OsString]> {
    let (program, rest) = args.split_first()?;
    let name = Path::new(program).file_name()?;
    if NAMES.iter().any(|known| name == OsStr::new(known)) {
        // A binary of that name starts itself for other things, too.
        let cli = Cli::command();
        let mut own = cli
            .get_subcommands()
            .filter(|command| command.is_hide_set());
        let is_own = own.any(|command| rest.first().is_some_and(|word| word == command.get_name()));
        return (!is_own).then_some(rest);
    }
    // mount.fuse(8): no command of Weir's has a directory in this place.
    let absolute = |word: &OsString| word.as_bytes().starts_with(b"/");
    match rest {
        [_, dir, flag, _] if absolute(dir) && flag == "-o" => Some(rest),
        [source, dir]
            if absolute(dir) && source.as_bytes().windows(3).any(|part| part == b"://") =>
        {
            Some(rest)
        }
        _ => None,
    }
}

/// The command line of `weir` that does what mount(8) wants.
fn translate(args: &[OsString]) -> Result<Wanted, String> {
    let mut wanted = Wanted::default();
    let mut places = Vec::new();
    let mut options = Vec::new();
    let mut is_tolerant = false;
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        match text.strip_prefix('-') {
            Some("") | None => places.push(word.clone()),
            Some(flags) => {
                for (at, flag) in flags.char_indices() {
                    match flag {
                        'n' | 'r' | 'w' => {}
                        'v' => wanted.verbose = true,
                        'f' => wanted.fake = true,
                        's' => is_tolerant = true,
                        'o' | 't' | 'N' => {
                            let inline = &flags[at + 1..];
                            let value = match (inline, words.as_slice().first()) {
                                ("", None) => return Err(format!("-{flag} wants a value")),
                                ("", Some(value)) => {
                                    words.next();
                                    value.to_string_lossy().into_owned()
                                }
                                (inline, _) => inline.to_owned(),
                            };
                            match flag {
                                'o' => options.extend(split(&value)),
                                'N' => {
                                    return Err("-N is not supported: run mount in that namespace"
                                        .to_owned());
                                }
                                _ => {}
                            }
                            break;
                        }
                        _ => return Err(format!("-{flag} is not known; {SYNOPSIS}")),
                    }
                }
            }
        }
    }
    let [source, dir] = places.as_slice() else {
        return Err(SYNOPSIS.to_owned());
    };
    wanted.args = vec!["weir".into(), "mount".into()];
    let mut unknown = Vec::new();
    for option in options {
        match flag(&option)? {
            Meaning::Flag(flag) => wanted.args.push(flag.into()),
            Meaning::NoExec => wanted.noexec = true,
            Meaning::None => {}
            Meaning::Unknown => unknown.push(option),
        }
    }
    if !unknown.is_empty() && !is_tolerant {
        return Err(format!(
            "unknown options: {}; known are rw, ro, noexec, defaults, _netdev, noauto, nofail, x-…, and the flags of `weir mount`: {}",
            unknown.join(", "),
            known().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
        ));
    }
    wanted
        .args
        .extend(["--".into(), repaired(source), dir.clone()]);
    Ok(wanted)
}

const SYNOPSIS: &str = "write mount.weir SOURCE DIR [-sfnv] [-o OPTIONS]";

enum Meaning {
    Flag(String),
    NoExec,
    None,
    Unknown,
}

/// What an option means.
fn flag(option: &str) -> Result<Meaning, String> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let long = name.replace('_', "-");
    if let Some((long, takes_value)) = known().find(|(known, _)| *known == long) {
        return match (takes_value, value) {
            (true, Some(value)) => Ok(Meaning::Flag(format!("--{long}={value}"))),
            (true, None) => Err(format!("the option {name} wants a value: {name}=…")),
            (false, None) => Ok(Meaning::Flag(format!("--{long}"))),
            (false, Some(_)) => Err(format!("the option {name} takes no value")),
        };
    }
    let for_others = ["x-", "X-", "comment=", "fsname=", "subtype=", "context="];
    Ok(match (name, value) {
        ("noexec", None) => Meaning::NoExec,
        (name, None) if NO_MATTER.contains(&name) => Meaning::None,
        _ if for_others.iter().any(|start| option.starts_with(start)) => Meaning::None,
        _ => Meaning::Unknown,
    })
}

/// The long flags of `weir mount`, and whether they take a value.
fn known() -> impl Iterator<Item = (String, bool)> {
    let cli = Cli::command();
    let mount = cli.find_subcommand("mount").cloned();
    let arguments = mount.into_iter().flat_map(|mount| {
        let flags = mount.get_arguments().filter_map(|argument| {
            let takes_value = argument.get_action().takes_values();
            Some((argument.get_long()?.to_owned(), takes_value))
        });
        flags.collect::<Vec<_>>()
    });
    arguments.filter(|(name, _)| !NOT_HERE.contains(&name.as_str()))
}

/// Options between commas. A comma that belongs to one is in double quotes or behind a backslash.
fn split(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut is_quoted = false;
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let Some(last) = options.last_mut() else {
            break;
        };
        match letter {
            '"' => is_quoted = !is_quoted,
            '\\' if matches!(letters.peek(), Some(',' | '\\' | '"')) => last.extend(letters.next()),
            ',' if !is_quoted => options.push(String::new()),
            letter => last.push(letter),
        }
    }
    options
}

/// A source as it was written: systemd takes `s3://bucket` for a path, and two slashes for one.
fn repaired(source: &OsStr) -> OsString {
    let text = source.to_string_lossy();
    for (written, meant) in [
        ("s3:/", "s3://"),
        ("hdfs:/", "hdfs://"),
        ("oss:/", "oss://"),
        ("gs:/", "gs://"),
        ("az:/", "az://"),
        ("abfss:/", "abfss://"),
        ("https:/", "https://"),
        ("http:/", "http://"),
        ("file:/", "file:///"),
    ] {
        if let Some(rest) = text.strip_prefix(written)
            && !rest.starts_with('/')
        {
            return format!("{meant}{rest}").into();
        }
    }
    source.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    /// The command line of `weir`, or what is wrong.
    fn translated(line: &str) -> Result<String, String> {
        let wanted = translate(&words(line))?;
        let args: Vec<_> = wanted
            .args
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        Ok(args.join(" "))
    }

    #[test]
    fn it_is_told_by_its_name_or_by_the_arguments_that_mount_fuse_gives() {
        for (line, is_program) in [
            ("/sbin/mount.weir s3://b /mnt -o rw", true),
            ("mount.fuse.weir s3://b /mnt", true),
            ("mount.weir", true),
            ("/sbin/mount.weir serve-mount --config {}", false),
            ("mount.weir hold", false),
            ("weir s3://b /mnt -o rw,dev,suid", true),
            ("weir imagenet@3 /mnt -o master=h:1,dev,suid", true),
            ("weir status /mnt -o rw", true),
            ("weir file:///data /mnt", true),
            ("weir status -o json", false),
            ("weir dataset get x -o json", false),
            ("weir mount s3://b /mnt", false),
            ("weir unmount /mnt", false),
            ("weir --version", false),
            ("weir", false),
        ] {
            assert_eq!(arguments(&words(line)).is_some(), is_program, "{line}");
        }
    }

    #[test]
    fn options_become_flags_and_those_of_every_file_system_are_taken() {
        for (line, expected) in [
            ("s3://b/p /mnt", "weir mount -- s3://b/p /mnt"),
            (
                "s3://b /mnt -o rw,defaults,_netdev,noauto,nofail,x-systemd.automount,x-gvfs-hide,dev,suid,comment=x,",
                "weir mount -- s3://b /mnt",
            ),
            (
                "s3://b /mnt -n -v -sf -o allow_other,uid=5,gid=6,file_mode=0440,dir-mode=0550 -t fuse.weir",
                "weir mount --allow-other --uid=5 --gid=6 --file-mode=0440 --dir-mode=0550 -- s3://b /mnt",
            ),
            (
                "-o ro -o endpoint=http://h:9000,region=r,profile=p,anonymous s3://b /mnt -o ssd=/a:1GiB,ssd=/b:2GiB,mem=64MiB",
                "weir mount --endpoint=http://h:9000 --region=r --profile=p --anonymous --ssd=/a:1GiB --ssd=/b:2GiB --mem=64MiB -- s3://b /mnt",
            ),
            (
                "name@3 /mnt -omaster=h:7440,timeout=9",
                "weir mount --master=h:7440 --timeout=9 -- name@3 /mnt",
            ),
            (
                "s3:/b/p /mnt -o profile=\"a,b\",region=x\\,y",
                "weir mount --profile=a,b --region=x,y -- s3://b/p /mnt",
            ),
            ("file:/data /mnt", "weir mount -- file:///data /mnt"),
            ("file:///data /mnt", "weir mount -- file:///data /mnt"),
        ] {
            assert_eq!(translated(line).as_deref(), Ok(expected), "{line}");
        }
        let wanted = translate(&words("s3://b /mnt -fv -o noexec,nosuid")).unwrap();
        assert!(wanted.fake && wanted.verbose && wanted.noexec);
        assert!(!translate(&words("s3://b /mnt")).unwrap().noexec);
    }

    #[test]
    fn every_command_line_that_it_makes_is_one_of_weirs() {
        let wanted =
            translate(&words("s3://b /mnt -o allow_other,mem=1GiB,read_ahead=off")).unwrap();
        let cli = Cli::try_parse_from(wanted.args).ok().unwrap();
        let Command::Mount(args) = cli.command else {
            panic!("it is another command");
        };
        assert!(args.allow_other && args.source == "s3://b" && args.dir == Path::new("/mnt"));
        let hostile = translate(&words("--foreground /mnt"));
        assert!(hostile.is_err());
    }

    #[test]
    fn what_is_not_known_is_an_error_that_names_all_of_it() {
        for (line, said) in [
            (
                "s3://b /mnt -o rw,passwd_file=x,turbo",
                "passwd_file=x, turbo",
            ),
            ("s3://b /mnt -o turbo", "allow-other"),
            ("s3://b /mnt -o remount,rw", "remount"),
            ("s3://b /mnt -o foreground", "unknown options: foreground"),
            ("s3://b /mnt -o region", "region=…"),
            ("s3://b /mnt -o anonymous=yes", "takes no value"),
            ("s3://b /mnt -o", "-o wants a value"),
            ("s3://b /mnt -x", "-x is not known"),
            ("s3://b /mnt -N 5", "namespace"),
            ("s3://b", "SOURCE DIR"),
            ("s3://b /a /b", "SOURCE DIR"),
        ] {
            let problem = translated(line).unwrap_err();
            assert!(problem.contains(said), "{said} is not in {problem}");
        }
        assert!(translated("s3://b /mnt -s -o turbo").is_ok());
    }
}

//! Object stores, web servers and directories: how each is started, and what one of them alone does.

use crate::Case;
use crate::origins::shared::{UnderTest, World, check_all, some_files};

mod directory;
mod emulators;
mod running;
mod s3;
mod web;

pub(crate) use directory::Directory;
pub(crate) use emulators::{Azurite, FakeGcs};
pub(crate) use running::emulators;
pub(crate) use s3::{Minio, Oss, S3Service};
pub(crate) use web::{Nginx, Python};

pub(crate) const CASES: &[Case] = &[
    (
        "what_is_stored_compressed_is_read_as_it_is_stored",
        what_is_stored_compressed_is_read_as_it_is_stored,
    ),
    (
        "a_shared_access_signature_admits_a_reader_and_is_not_shown",
        a_shared_access_signature_admits_a_reader_and_is_not_shown,
    ),
    (
        "an_index_names_the_files_of_a_web_server",
        an_index_names_the_files_of_a_web_server,
    ),
];

fn what_is_stored_compressed_is_read_as_it_is_stored() {
    let world = World::<FakeGcs>::with(some_files(1));
    // gzip -n of "hello hello hello hello\n".
    let packed = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xcb, 0x48, 0xcd, 0xc9, 0xc9, 0x57, 0xc8, 0x40, 0x27,
        0xb9, 0x00, 0x00, 0x88, 0x59, 0x0b, 0x18, 0x00, 0x00, 0x00,
    ];
    world.store.put_compressed("packed.gz", &packed);
    let mount = world.mount();
    assert_eq!(mount.read("packed.gz"), packed);
    check_all(&mount, &world.files);
}

fn a_shared_access_signature_admits_a_reader_and_is_not_shown() {
    let mut world = World::<Azurite>::with(some_files(3));
    let (name, signature) = Azurite::TO_READ;
    world.lab.set_env(name, signature);
    let mount = world.mount();
    check_all(&mount, &world.files);
    world.store.delete("d0/f000");
    let secret = signature.split("sig=").nth(1).unwrap();
    assert!(!mount.log().contains(secret), "{}", mount.log());
    drop(mount);
    let wrong = signature.replace("sig=", "sig=0");
    world.lab.set_env(name, &wrong);
    let at = world.at();
    let flags = world.store.flags(at);
    let dir = world.lab.path("other");
    let args = ["mount", "az://bucket/", dir.to_str().unwrap(), "--refresh"].into_iter();
    let told = world.lab.weir(args.chain(flags.iter().map(String::as_str)));
    assert_ne!(told.code, 0);
    assert!(told.stderr.contains("access denied"), "{}", told.stderr);
    assert!(!told.stderr.contains(secret), "{}", told.stderr);
}

fn an_index_names_the_files_of_a_web_server() {
    let world = World::<Python>::with(some_files(3));
    let at = world.at();
    let sum = |text: &[u8]| {
        let path = world.lab.path("sum");
        std::fs::write(&path, text).unwrap();
        let mut command = std::process::Command::new("sha256sum");
        command.arg(&path);
        let printed = world.lab.run(command).ok();
        printed.split(' ').next().unwrap().to_owned()
    };
    let small = &world.files["d0/f000"];
    let index = format!(
        "# path, size, digest\nd0/f000\t{}\tsha256:{}\nd1/f001\n{{\"path\":\"large\",\"size\":{}}}\nd2/f002\t{}\tsha256:{}\n",
        small.len(),
        sum(small),
        world.files["large"].len(),
        world.files["d2/f002"].len(),
        sum(b"something else"),
    );
    world.store.put("list.txt", index.as_bytes());
    let url = format!("http://{at}/?index=list.txt");
    let mount = world.lab.mount_at(&url, "mnt", &["--read-ahead", "off"]);
    for name in ["d0/f000", "d1/f001", "large"] {
        assert!(mount.read(name) == world.files[name], "{name}");
    }
    assert!(!mount.path("list.txt").exists());
    // A file that is not what its digest says is never shown.
    let error = std::fs::read(mount.path("d2/f002")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{}", mount.log());
    assert!(mount.log().contains("checksum"), "{}", mount.log());
}

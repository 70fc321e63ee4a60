//! Stores that speak S3: the small server of the other tests, the same as OSS, and MinIO.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use weir_s3_server::{Bucket, Config, S3Server};
use weir_tests::{BUCKET, wait_until};

use super::running::{Running, emulators, encoded};
use crate::origins::shared::{Mistake, UnderTest};

/// Whom the stores let in.
const USER: &str = "weir-tests";
const SECRET: &str = "not-a-secret";

/// Flags and mistakes of a service of S3 at an endpoint.
fn endpoint(at: SocketAddr) -> Vec<String> {
    ["--endpoint".to_owned(), format!("http://{at}")].into()
}

fn keys() -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ACCESS_KEY_ID", USER.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
    ]
}

/// Wrong keys are told from a bucket that is missing.
fn mistakes(at: SocketAddr) -> Vec<Mistake> {
    let url = format!("s3://{BUCKET}/");
    let anonymous = [endpoint(at), vec!["--anonymous".to_owned()]].concat();
    vec![
        Mistake::new("s3://missing/", endpoint(at), "does not exist"),
        Mistake::new(&url, endpoint(at), "access denied").with("AWS_SECRET_ACCESS_KEY", "wrong"),
        Mistake::new(&url, endpoint(at), "access denied").with("AWS_ACCESS_KEY_ID", "nobody"),
        Mistake::new(&url, anonymous, "access denied"),
    ]
}

/// The small S3 server of the other tests, reached as one service or another.
pub(crate) struct Small<K> {
    server: S3Server,
    kind: PhantomData<fn() -> K>,
}

/// What the small server stands for.
pub(crate) trait Standing: 'static {
    /// Its URLs.
    const SCHEME: &str;
    /// The domain of buckets' own hosts.
    const DOMAIN: Option<&str>;

    fn flags(at: SocketAddr) -> Vec<String>;
    fn environment(at: SocketAddr) -> Vec<(&'static str, String)>;
    fn mistakes(at: SocketAddr) -> Vec<Mistake>;
}

impl<K: Standing> UnderTest for Small<K> {
    fn start() -> Self {
        let server = S3Server::start(Config {
            credentials: Some((USER.to_owned(), SECRET.to_owned())),
            domain: K::DOMAIN.map(str::to_owned),
            ..Config::default()
        });
        let server = server.unwrap();
        server.edit(BUCKET, |_| ());
        Self {
            server,
            kind: PhantomData,
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        let endpoint = self.server.endpoint();
        Some(endpoint.strip_prefix("http://")?.parse().unwrap())
    }

    fn put(&self, key: &str, content: &[u8]) {
        let put = |bucket: &mut Bucket| bucket.put(key, content.to_vec());
        self.server.edit(BUCKET, put);
    }

    fn delete(&self, key: &str) {
        self.server.edit(BUCKET, |bucket| {
            bucket.delete(key.as_bytes());
        });
    }

    fn url(&self, _at: SocketAddr) -> String {
        format!("{}://{BUCKET}/", K::SCHEME)
    }

    fn flags(&self, at: SocketAddr) -> Vec<String> {
        K::flags(at)
    }

    fn environment(&self, at: SocketAddr) -> Vec<(&'static str, String)> {
        K::environment(at)
    }

    fn mistakes(&self, at: SocketAddr) -> Vec<Mistake> {
        K::mistakes(at)
    }
}

/// The server as what it is.
pub(crate) struct AsS3;
pub(crate) type S3Service = Small<AsS3>;

impl Standing for AsS3 {
    const SCHEME: &str = "s3";
    const DOMAIN: Option<&str> = None;

    fn flags(at: SocketAddr) -> Vec<String> {
        endpoint(at)
    }

    fn environment(_at: SocketAddr) -> Vec<(&'static str, String)> {
        keys()
    }

    fn mistakes(at: SocketAddr) -> Vec<Mistake> {
        mistakes(at)
    }
}

/// The server in the place of OSS's endpoint for S3's protocol: a proxy of the environment leads there, so that requests
/// have the hosts, and signatures the region, that OSS wants.
pub(crate) struct AsOss;
pub(crate) type Oss = Small<AsOss>;

/// Where OSS's own protocol is spoken, and S3's.
const OSS_ENDPOINT: &str = "http://oss-cn-hangzhou.aliyuncs.com";
const OSS_S3_HOST: &str = "s3.oss-cn-hangzhou.aliyuncs.com";

impl Standing for AsOss {
    const SCHEME: &str = "oss";
    const DOMAIN: Option<&str> = Some(OSS_S3_HOST);

    fn flags(_at: SocketAddr) -> Vec<String> {
        ["--endpoint".to_owned(), OSS_ENDPOINT.to_owned()].into()
    }

    fn environment(at: SocketAddr) -> Vec<(&'static str, String)> {
        vec![
            ("HTTP_PROXY", format!("http://{at}")),
            ("NO_PROXY", String::new()),
            ("no_proxy", String::new()),
            ("OSS_ACCESS_KEY_ID", USER.to_owned()),
            ("OSS_ACCESS_KEY_SECRET", SECRET.to_owned()),
            ("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true".to_owned()),
        ]
    }

    fn mistakes(at: SocketAddr) -> Vec<Mistake> {
        let url = format!("oss://{BUCKET}/");
        let denied = || Mistake::new(&url, Self::flags(at), "access denied");
        let keyless = Mistake::new(&url, Self::flags(at), "OSS_ACCESS_KEY_ID");
        vec![
            Mistake::new("oss://missing/", Self::flags(at), "does not exist"),
            Mistake::new(&url, Vec::new(), "OSS_REGION"),
            denied().with("OSS_ACCESS_KEY_SECRET", "wrong"),
            denied().with("OSS_ACCESS_KEY_ID", "nobody"),
            keyless.with("OSS_ACCESS_KEY_ID", ""),
        ]
    }
}

/// MinIO. Its bucket takes files from everybody, and Weir signs.
pub(crate) struct Minio(Running);

/// MinIO listens before it can work.
const READY_DEADLINE: Duration = Duration::from_secs(30);

impl Minio {
    /// Makes its bucket, into which everybody may put files; whether that succeeds.
    fn open(&self) -> bool {
        let policy = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"AWS":["*"]}},"Action":["s3:PutObject","s3:DeleteObject"],"Resource":["arn:aws:s3:::{BUCKET}/*"]}}]}}"#
        );
        let address = self.0.address.to_string();
        let mut command = Command::new("python3");
        command
            .args(["-c", SIGNED_PUTS, &address, USER, SECRET, BUCKET, &policy])
            .stderr(Stdio::null());
        command.status().unwrap().success()
    }
}

/// Puts a bucket and its policy, signed.
const SIGNED_PUTS: &str = r#"
import datetime, hashlib, hmac, http.client, sys
host, user, secret, bucket, policy = sys.argv[1:]
def mac(key, text): return hmac.new(key, text.encode(), hashlib.sha256).digest()
def put(query, body):
    time = datetime.datetime.utcnow().strftime("%Y%m%dT%H%M%SZ")
    scope = time[:8] + "/us-east-1/s3/aws4_request"
    sha = hashlib.sha256(body.encode()).hexdigest()
    names = "host;x-amz-content-sha256;x-amz-date"
    lines = ["PUT", "/" + bucket, query, "host:" + host, "x-amz-content-sha256:" + sha, "x-amz-date:" + time, "", names, sha]
    text = "\n".join(["AWS4-HMAC-SHA256", time, scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()])
    key = ("AWS4" + secret).encode()
    for part in scope.split("/"): key = mac(key, part)
    auth = "AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s" % (user, scope, names, mac(key, text).hex())
    connection = http.client.HTTPConnection(host)
    headers = {"x-amz-date": time, "x-amz-content-sha256": sha, "Authorization": auth}
    connection.request("PUT", "/" + bucket + "?" + query, body, headers)
    answer = connection.getresponse()
    assert answer.status in (200, 204, 409), answer.read()
put("", "")
put("policy=", policy)
"#;

impl UnderTest for Minio {
    const PUT_AT_A_TIME: usize = 8;

    fn start() -> Self {
        let binary = emulators().join("minio");
        let running = Running::start(|port, dir| {
            let mut command = Command::new(binary);
            command
                .args(["server", "--quiet", "--address"])
                .arg(format!("127.0.0.1:{port}"))
                .arg(dir.path().join("data"))
                .env("HOME", dir.path())
                .env("MINIO_ROOT_USER", USER)
                .env("MINIO_ROOT_PASSWORD", SECRET)
                .env("MINIO_BROWSER", "off")
                .env("MINIO_CI_CD", "1") // takes a directory on the system's disk
                .env("MINIO_UPDATE", "off");
            command
        });
        let minio = Self(running);
        wait_until("MinIO takes a bucket", READY_DEADLINE, || minio.open());
        minio
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(self.0.address)
    }

    fn put(&self, key: &str, content: &[u8]) {
        let path = format!("/{BUCKET}/{}", encoded(key));
        self.0.ask("PUT", &path, "", content);
    }

    fn delete(&self, key: &str) {
        let path = format!("/{BUCKET}/{}", encoded(key));
        self.0.ask("DELETE", &path, "", b"");
    }

    fn url(&self, _at: SocketAddr) -> String {
        format!("s3://{BUCKET}/")
    }

    fn flags(&self, at: SocketAddr) -> Vec<String> {
        endpoint(at)
    }

    fn environment(&self, _at: SocketAddr) -> Vec<(&'static str, String)> {
        keys()
    }

    fn mistakes(&self, at: SocketAddr) -> Vec<Mistake> {
        mistakes(at)
    }
}

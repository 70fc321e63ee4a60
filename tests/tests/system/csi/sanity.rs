//! The CSI project's own tests of drivers, csi-sanity, against the plugin's socket and a small cluster.
//!
//! `WEIR_TEST_CSI_SANITY` names the program, which `make test-csi-sanity` builds; without it there is nothing to be tested.
//!
//! Volumes of Weir are made by the operator or by hand, and csi-sanity makes them by CreateVolume. So a [`Maker`] stands before the plugin's
//! controller service: it answers CreateVolume and DeleteVolume itself, as if it were who makes persistent volumes, and passes everything else on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use weir_csi::proto::csi::controller_client::ControllerClient;
use weir_csi::proto::csi::controller_server::{Controller, ControllerServer};
use weir_csi::proto::csi::identity_client::IdentityClient;
use weir_csi::proto::csi::identity_server::{Identity, IdentityServer};
use weir_csi::proto::csi::{
    ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse, CreateVolumeRequest,
    CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse, GetCapacityRequest,
    GetCapacityResponse, GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse,
    GetPluginInfoRequest, GetPluginInfoResponse, ProbeRequest, ProbeResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume,
};
use weir_demo::ending::tell;
use weir_tests::{Cluster, Lab, comes_true};
use weir_trust::{Limits, incoming_unix};

use super::node::{Node, fill, within};

/// Names the program.
const PROGRAM: &str = "WEIR_TEST_CSI_SANITY";
/// Set to write the page anew instead of comparing it.
const WRITE: &str = "WEIR_WRITE_CSI_SANITY";
/// Where the page tells what was skipped.
const BEGIN: &str = "<!-- csi-sanity -->\n";
const END: &str = "<!-- /csi-sanity -->";
/// Longest run of all its tests, which take some seconds.
const DEADLINE: Duration = Duration::from_mins(3);
/// What csi-sanity calls those tests that were ready to be run.
const PASSED: &str = "passed";
const SKIPPED: &str = "skipped";
const PENDING: &str = "pending";

/// Those that make a volume first, and cannot be run without a [`Maker`]: docs/testing.md lists them.
const NEED_A_VOLUME: [(&str, &str); 6] = [
    ("NodeUnpublishVolume", "should remove target path"),
    (
        "NodeGetVolumeStats",
        "should fail when volume does not exist on",
    ),
    ("Node Service", "should work"),
    ("Node Service", "should be idempotent"),
    (
        "ValidateVolumeCapabilities",
        "should fail when no volume capabilities",
    ),
    (
        "ValidateVolumeCapabilities",
        "should return appropriate values",
    ),
];

pub(super) fn csi_sanity_passes_and_what_it_skips_is_documented() {
    let Some(program) = std::env::var_os(PROGRAM).filter(|program| !program.is_empty()) else {
        tell(format_args!(
            "csi-sanity is not run: `make test-csi-sanity` does"
        ));
        return;
    };
    let lab = Lab::new();
    let cluster = Cluster::start(&lab, 1);
    fill(&lab, &cluster);
    let node = Node::start(&lab, &cluster);
    let socket = lab.path("maker.sock");
    let plugin = node.channel("csi.sock");
    let maker = Maker {
        identity: IdentityClient::new(plugin.clone()),
        controller: ControllerClient::new(plugin),
    };
    {
        let _inside = node.runtime.enter();
        let listener = UnixListener::bind(&socket).unwrap();
        let routes = Routes::new(ControllerServer::new(maker.clone()));
        let routes = routes.add_service(IdentityServer::new(maker));
        let stop = CancellationToken::new();
        let incoming = incoming_unix(listener, Limits::default(), stop.clone());
        tokio::spawn(weir_trust::serve(routes, incoming, stop));
    }
    let report = lab.path("report.json");
    let output = run(&lab, Path::new(&program), &socket, &report);
    let report = std::fs::read(&report).unwrap_or_else(|error| panic!("{error}: {output}"));
    let tests = tests(&serde_json::from_slice(&report).unwrap());
    let failed: Vec<&Test> = tests.iter().filter(|test| test.has_failed()).collect();
    assert!(failed.is_empty(), "{failed:#?}\n{output}");
    for (path, name) in NEED_A_VOLUME {
        let is = |test: &&Test| test.path.ends_with(path) && test.name.starts_with(name);
        let test = tests.iter().find(is).unwrap();
        assert_eq!(test.state, PASSED, "{test:?}");
    }
    node.is_clean();
    compare(&page(&tests));
}

/// Runs all tests; gives what they said.
fn run(lab: &Lab, program: &Path, maker: &Path, report: &Path) -> String {
    let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let endpoint = |name: &str, path: &Path| format!("--{name}=unix://{}", path.display());
    let log = lab.path("sanity.log");
    let out = std::fs::File::create(&log).unwrap();
    let mut child = Command::new(program)
        .args([
            endpoint("csi.endpoint", &lab.path("csi.sock")),
            endpoint("csi.controllerendpoint", maker),
            // Below kubelet's directory, where alone a volume may be.
            flag("csi.mountdir", &lab.path("kubelet/pods/sanity")),
            flag("csi.stagingdir", &lab.path("staging")),
            flag("ginkgo.json-report", report),
            "--ginkgo.no-color".to_owned(),
        ])
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let has_ended = comes_true(DEADLINE, || child.try_wait().unwrap().is_some());
    if !has_ended {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let output = std::fs::read_to_string(&log).unwrap();
    assert!(
        has_ended,
        "csi-sanity had not ended after {DEADLINE:?}:\n{output}"
    );
    output
}

/// One of its tests, and what became of it.
#[derive(Debug)]
struct Test {
    /// The parts of its name, as `Node Service / NodePublishVolume`.
    path: String,
    name: String,
    state: String,
    said: String,
}

impl Test {
    fn has_failed(&self) -> bool {
        ![PASSED, SKIPPED, PENDING].contains(&self.state.as_str())
    }
}

/// What the report tells of the tests.
fn tests(report: &Value) -> Vec<Test> {
    let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
    let specs = report[0]["SpecReports"].as_array().unwrap().iter();
    let specs = specs.filter(|spec| spec["LeafNodeType"] == "It");
    specs
        .map(|spec| {
            let parts = spec["ContainerHierarchyTexts"].as_array().unwrap();
            let parts: Vec<&str> = parts.iter().filter_map(Value::as_str).collect();
            Test {
                path: parts.join(" / "),
                name: text(&spec["LeafNodeText"]),
                state: text(&spec["State"]),
                said: text(&spec["Failure"]["Message"]),
            }
        })
        .collect()
}

/// The part of the page.
fn page(tests: &[Test]) -> String {
    let of = |state: &str| tests.iter().filter(|test| test.state == state).count();
    let mut rows: BTreeMap<(bool, &str, &str), usize> = BTreeMap::new();
    for test in tests {
        let why = match test.state.as_str() {
            PASSED => "",
            PENDING => "csi-sanity leaves it out itself",
            _ => &test.said,
        };
        let skipped = test.state != PASSED;
        *rows.entry((skipped, &test.path, why)).or_default() += 1;
    }
    let rows = |skipped: bool| {
        let rows = rows.iter().filter(move |((is, ..), _)| *is == skipped);
        rows.map(|((_, path, why), count)| (path, count, why))
    };
    let passed = rows(false).map(|(path, count, _)| format!("| {path} | {count} |"));
    let skipped = rows(true).map(|(path, count, why)| format!("| {path} | {count} | {why} |"));
    format!(
        "Of {} tests {} pass, {} are skipped, and {} csi-sanity leaves out itself.\n\n| passed | tests |\n|---|---|\n{}\n\n| skipped | tests | what csi-sanity says of it |\n|---|---|---|\n{}\n",
        tests.len(),
        of(PASSED),
        of(SKIPPED),
        of(PENDING),
        passed.collect::<Vec<_>>().join("\n"),
        skipped.collect::<Vec<_>>().join("\n")
    )
}

/// The page must say just that.
fn compare(told: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/testing.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (written, after) = rest.split_once(END).unwrap();
    if std::env::var_os(WRITE).is_some() {
        let page = format!("{before}{BEGIN}{told}{END}{after}");
        std::fs::write(&path, page).unwrap();
        return;
    }
    assert_eq!(
        written, told,
        "docs/testing.md tells something else; {WRITE}=1 make test-csi-sanity writes it anew"
    );
}

/// Makes volumes of the dataset `team-a/x`, and has the plugin answer all other calls.
#[derive(Clone)]
struct Maker {
    identity: IdentityClient<Channel>,
    controller: ControllerClient<Channel>,
}

#[tonic::async_trait]
impl Identity for Maker {
    async fn get_plugin_info(
        &self,
        request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let request = within(request.into_inner());
        self.identity.clone().get_plugin_info(request).await
    }

    async fn get_plugin_capabilities(
        &self,
        request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let request = within(request.into_inner());
        self.identity.clone().get_plugin_capabilities(request).await
    }

    async fn probe(
        &self,
        request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        let request = within(request.into_inner());
        self.identity.clone().probe(request).await
    }
}

#[tonic::async_trait]
impl Controller for Maker {
    /// A volume as kubelet would have it published for a pod; inline, since csi-sanity asks for one that is written.
    async fn create_volume(
        &self,
        _: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let context = [
            ("dataset", "team-a/x"),
            ("csi.storage.k8s.io/pod.namespace", "team-a"),
            ("csi.storage.k8s.io/pod.name", "trainer-0"),
            ("csi.storage.k8s.io/ephemeral", "true"),
        ];
        let context = context.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok(Response::new(CreateVolumeResponse {
            volume: Some(Volume {
                volume_id: "team-a/x".to_owned(),
                volume_context: context.into(),
                ..Volume::default()
            }),
        }))
    }

    async fn delete_volume(
        &self,
        _: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = within(request.into_inner());
        self.controller
            .clone()
            .validate_volume_capabilities(request)
            .await
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let request = within(request.into_inner());
        self.controller.clone().get_capacity(request).await
    }

    async fn controller_get_capabilities(
        &self,
        request: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let request = within(request.into_inner());
        self.controller
            .clone()
            .controller_get_capabilities(request)
            .await
    }
}

//! From the description of an origin to the origin, and its listing with what is counted of it.
//!
//! This is the one file that knows all kinds of origin. A new kind is a [`Place`] and a case here.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

use crate::azure::Azure;
use crate::error::OriginError;
use crate::file::FileOrigin;
use crate::gcs::Gcs;
use crate::hdfs::HdfsOrigin;
use crate::metrics::{Operation, OriginMetrics};
use crate::origin::{Listed, Origin};
use crate::s3::S3Origin;
use crate::sources::SourcePolicy;
use crate::spec::{OriginSpec, Place};
use crate::web::WebOrigin;

/// Opens an origin. Sends no request: wrong configuration is an error here, a missing bucket or wrong credentials
/// are errors of the first request. A directory must exist. What `policy` does not allow is an error here, or of the
/// request that would have gone where it must not.
pub fn open<'a>(
    spec: &'a OriginSpec,
    policy: &'a SourcePolicy,
) -> BoxFuture<'a, Result<Arc<dyn Origin>, OriginError>> {
    async move {
        spec.validate()?;
        if let Some(simulated) = policy.open_simulated(spec) {
            return Ok(simulated);
        }
        let opened: Arc<dyn Origin> = match spec.place()? {
            Place::S3 { .. } => Arc::new(S3Origin::open(spec, policy)?),
            Place::Hdfs { namenodes, .. } => {
                let opened = HdfsOrigin::open(spec, namenodes, policy).await?;
                Arc::new(opened)
            }
            Place::Gcs { .. } => Arc::new(Gcs::open(spec, policy)?),
            Place::Azure { .. } => Arc::new(Azure::open(spec, policy)?),
            Place::Web(_) => Arc::new(WebOrigin::open(spec, policy)?),
            Place::File { dir } => {
                let opened = FileOrigin::open(spec.id(), dir.into(), policy).await?;
                Arc::new(opened)
            }
        };
        Ok(opened)
    }
    .boxed()
}

/// [`Origin::list`] with its pages and errors counted.
pub fn list<'a>(
    origin: &'a dyn Origin,
    prefix: &str,
    metrics: &'a OriginMetrics,
) -> BoxStream<'a, Result<Vec<Listed>, OriginError>> {
    let kind = origin.kind();
    let mut request = Some(metrics.request(kind, Operation::List));
    let counted = origin.list(prefix).inspect(move |page| {
        if let Some(request) = request.take() {
            request.finish(page.as_ref().err());
        }
        match page {
            Ok(_) => request = Some(metrics.request(kind, Operation::List)),
            Err(error) => metrics.failed(error),
        }
    });
    counted.boxed()
}

//! What a dataset was declared to be.

use weir_core::DatasetSpec;
use weir_origin::spec_of;
use weir_proto::v1;

use crate::error::MasterError;

/// The specification of a known dataset.
pub(super) fn dataset_spec(dataset: &v1::Dataset) -> Result<DatasetSpec, MasterError> {
    spec_of(dataset).map_err(|error| {
        MasterError::Invalid(format!(
            "the stored specification of dataset {} is not of this version: {error}; run the newest `weir master` that it had",
            dataset.name
        ))
    })
}

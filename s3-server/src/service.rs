//! The S3 operations that readers use, over the buckets.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream;
use parking_lot::RwLock;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use s3s::dto::{
    ChecksumMode, ChecksumType, ETag, ETagCondition, EncodingType, GetObjectAttributesInput,
    GetObjectAttributesOutput, GetObjectAttributesParts, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
    ListObjectsV2Output, Object, ObjectPart, ObjectStorageClass, StreamingBlob,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use crate::bucket::Bucket;
use crate::checksum::{Crc, Sums};
use crate::fault::{Fault, Target};
use crate::version::Version;

/// Keys of one page at most, as S3 has it.
const MAX_KEYS: i32 = 1000;
/// Bytes of one piece of a body.
const PIECE: u64 = 256 << 10;
/// What S3 leaves as it is when it percent-encodes keys of a listing.
const KEY_ENCODING: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'*');

pub(crate) type Buckets = Arc<RwLock<HashMap<String, Bucket>>>;

/// What the server was asked for.
#[derive(Debug, Default)]
pub struct Stats {
    gets: AtomicU64,
    lists: AtomicU64,
    heads: AtomicU64,
    bytes: AtomicU64,
}

impl Stats {
    /// Reads of objects, faulty ones included.
    pub fn gets(&self) -> u64 {
        self.gets.load(Ordering::Relaxed)
    }

    /// Pages of listings, faulty ones included.
    pub fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    /// Questions about objects, faulty ones included.
    pub fn heads(&self) -> u64 {
        self.heads.load(Ordering::Relaxed)
    }

    /// Bytes of objects that were sent, or would have been but for a fault.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, asked: Target) {
        let counter = match asked {
            Target::List => &self.lists,
            Target::Head => &self.heads,
            Target::Get | Target::All => &self.gets,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The operations.
pub(crate) struct Service {
    pub(crate) buckets: Buckets,
    pub(crate) stats: Arc<Stats>,
}

impl Service {
    fn version(&self, bucket: &str, key: &str) -> S3Result<Version> {
        let buckets = self.buckets.read();
        let bucket = find(&buckets, bucket)?;
        let version = bucket.get(key.as_bytes());
        version
            .map(Cow::into_owned)
            .ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))
    }
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        if self.buckets.read().contains_key(&request.input.bucket) {
            return Ok(S3Response::new(HeadBucketOutput::default()));
        }
        Err(s3_error!(NoSuchBucket))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = request.input;
        let version = self.version(&input.bucket, &input.key)?;
        check_etag(input.if_match.as_ref(), &version)?;
        let wants_checksum = wants_checksum(input.checksum_mode.as_ref());
        let sums = version.sums.as_ref().filter(|_| wants_checksum);
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(version.size as i64),
            checksum_crc64nvme: Sums::value_of(sums, Crc::Crc64Nvme),
            checksum_crc32c: Sums::value_of(sums, Crc::Crc32c),
            checksum_crc32: Sums::value_of(sums, Crc::Crc32),
            checksum_type: sums.map(|sums| {
                let whole = sums.parts.is_empty();
                ChecksumType::from_static(if whole {
                    ChecksumType::FULL_OBJECT
                } else {
                    ChecksumType::COMPOSITE
                })
            }),
            e_tag: Some(ETag::Strong(version.etag)),
            last_modified: Some(version.modified.into()),
            ..HeadObjectOutput::default()
        }))
    }

    async fn get_object_attributes(
        &self,
        request: S3Request<GetObjectAttributesInput>,
    ) -> S3Result<S3Response<GetObjectAttributesOutput>> {
        let input = request.input;
        let version = self.version(&input.bucket, &input.key)?;
        let max = input.max_parts.unwrap_or(MAX_KEYS).clamp(0, MAX_KEYS) as usize;
        let after = input.part_number_marker.unwrap_or(0).max(0) as usize;
        let parts = version.sums.filter(|sums| !sums.parts.is_empty());
        let parts = parts.map(|sums| {
            let value = |kind: Crc, value: &String| (sums.kind == kind).then(|| value.clone());
            let numbered = sums.parts.iter().zip(1..).skip(after).take(max);
            let page: Vec<ObjectPart> = numbered
                .map(|((size, sum), number)| ObjectPart {
                    part_number: Some(number),
                    size: Some(*size as i64),
                    checksum_crc64nvme: value(Crc::Crc64Nvme, sum),
                    checksum_crc32c: value(Crc::Crc32c, sum),
                    checksum_crc32: value(Crc::Crc32, sum),
                    ..ObjectPart::default()
                })
                .collect();
            GetObjectAttributesParts {
                is_truncated: Some(after + page.len() < sums.parts.len()),
                next_part_number_marker: page.last().and_then(|part| part.part_number),
                total_parts_count: Some(sums.parts.len() as i32),
                parts: Some(page),
                ..GetObjectAttributesParts::default()
            }
        });
        Ok(S3Response::new(GetObjectAttributesOutput {
            object_parts: parts,
            ..GetObjectAttributesOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let raw = request.extensions.get::<Fault>() == Some(&Fault::RawKeys);
        let encoded = !raw
            && input
                .encoding_type
                .as_ref()
                .is_some_and(|e| e.as_str() == EncodingType::URL);
        if input
            .delimiter
            .is_some_and(|delimiter| !delimiter.is_empty())
        {
            return Err(s3_error!(NotImplemented, "listings with a delimiter"));
        }
        let prefix = input.prefix.unwrap_or_default();
        let after = match &input.continuation_token {
            Some(token) => Some(parse_token(token)?),
            None => input.start_after.map(String::into_bytes),
        };
        let max = input.max_keys.unwrap_or(MAX_KEYS).clamp(0, MAX_KEYS) as usize;
        let buckets = self.buckets.read();
        let bucket = find(&buckets, &input.bucket)?;
        let mut found = bucket.list(prefix.as_bytes(), after.as_deref());
        let mut last = None;
        let contents: Vec<Object> = found
            .by_ref()
            .take(max)
            .map(|(key, version)| {
                let name = if encoded {
                    percent_encode(&key, KEY_ENCODING).to_string()
                } else {
                    String::from_utf8_lossy(&key).into_owned()
                };
                last = Some(key);
                Object {
                    key: Some(name),
                    size: Some(version.size as i64),
                    e_tag: Some(ETag::Strong(version.etag.clone())),
                    last_modified: Some(version.modified.into()),
                    storage_class: version.archive.map(ObjectStorageClass::from_static),
                    ..Object::default()
                }
            })
            .collect();
        let next = last.filter(|_| found.next().is_some());
        let next = next.map(|key| token(&key));
        drop(found);
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(prefix),
            max_keys: Some(max as i32),
            key_count: Some(contents.len() as i32),
            is_truncated: Some(next.is_some()),
            continuation_token: input.continuation_token,
            next_continuation_token: next,
            encoding_type: encoded.then(|| EncodingType::from_static(EncodingType::URL)),
            contents: Some(contents),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let fault = request.extensions.get::<Fault>().cloned();
        let mut version = self.version(&input.bucket, &input.key)?;
        if version.archive.is_some() {
            return Err(s3_error!(
                InvalidObjectState,
                "The operation is not valid for the object's storage class"
            ));
        }
        if fault == Some(Fault::OtherEtag) {
            version.etag.push('0');
        } else if fault != Some(Fault::NoEtag) {
            check_etag(input.if_match.as_ref(), &version)?;
        }
        let part = match input.range {
            Some(range) if !matches!(fault, Some(Fault::IgnoreRange | Fault::Unpacked(_))) => {
                let mut part = range.check(version.size)?;
                if let Some(Fault::ShortRange(most)) = fault {
                    part.end = part.end.min(part.start + most);
                }
                Some(part)
            }
            _ => None,
        };
        let sent = part.clone().unwrap_or(0..version.size);
        self.stats
            .bytes
            .fetch_add(sent.end - sent.start, Ordering::Relaxed);
        let wants_checksum = wants_checksum(input.checksum_mode.as_ref()) && part.is_none();
        let sums = version.sums.as_ref().filter(|_| wants_checksum);
        let output = GetObjectOutput {
            content_length: Some((sent.end - sent.start) as i64),
            content_range: part
                .as_ref()
                .map(|part| format!("bytes {}-{}/{}", part.start, part.end - 1, version.size)),
            checksum_crc64nvme: Sums::value_of(sums, Crc::Crc64Nvme),
            checksum_crc32c: Sums::value_of(sums, Crc::Crc32c),
            checksum_crc32: Sums::value_of(sums, Crc::Crc32),
            e_tag: Some(ETag::Strong(version.etag.clone()))
                .filter(|_| fault != Some(Fault::NoEtag)),
            last_modified: Some(version.modified.into()),
            body: Some(body(&version, sent, fault == Some(Fault::FlipBit))?),
            ..GetObjectOutput::default()
        };
        Ok(S3Response::new(output))
    }
}

fn wants_checksum(mode: Option<&ChecksumMode>) -> bool {
    mode.is_some_and(|mode| mode.as_str() == ChecksumMode::ENABLED)
}

/// Refuses a request for another version.
fn check_etag(condition: Option<&ETagCondition>, version: &Version) -> S3Result<()> {
    if let Some(ETagCondition::ETag(wanted)) = condition
        && *wanted != ETag::Strong(version.etag.clone())
    {
        return Err(s3_error!(
            PreconditionFailed,
            "At least one of the pre-conditions you specified did not hold"
        ));
    }
    Ok(())
}

fn find<'a>(buckets: &'a HashMap<String, Bucket>, name: &str) -> S3Result<&'a Bucket> {
    buckets
        .get(name)
        .ok_or_else(|| s3_error!(NoSuchBucket, "The specified bucket does not exist"))
}

/// The bytes of `range` in pieces.
fn body(version: &Version, range: Range<u64>, flip: bool) -> S3Result<StreamingBlob> {
    let reader = version.open().map_err(s3s::S3Error::internal_error)?;
    let flipped = range.start + (range.end - range.start) / 2;
    let pieces = stream::unfold(range, move |range| {
        let end = range.end.min(range.start + PIECE);
        let piece = (range.start < range.end).then(|| {
            let piece = reader.read(range.start..end);
            if flip && (range.start..end).contains(&flipped) {
                return piece.map(|piece| {
                    let mut piece = piece.to_vec();
                    piece[(flipped - range.start) as usize] ^= 1;
                    Bytes::from(piece)
                });
            }
            piece
        });
        std::future::ready(piece.map(|piece| (piece, end..range.end)))
    });
    Ok(StreamingBlob::wrap(pieces))
}

/// A token is the last key of its page in hexadecimal digits.
fn token(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_token(token: &str) -> S3Result<Vec<u8>> {
    let digits = token.as_bytes().chunks(2);
    let bytes = digits.map(|pair| {
        let pair = str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    bytes.collect::<Option<_>>().ok_or_else(|| {
        s3_error!(
            InvalidArgument,
            "The continuation token provided is incorrect"
        )
    })
}

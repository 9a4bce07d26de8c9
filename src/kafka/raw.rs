//! The room's one place with `unsafe`: two calls of librdkafka that the `rdkafka` crate has no safe form of.
//!
//! - [`describe_topics`]: topic ids. The crate's metadata has none, and without the id a topic that was deleted and made again
//!   looks like the old one.
//! - [`header`]: one header by name. The crate's iterator panics on a header name that is not UTF-8, which any other
//!   producer on the topic could send us; this one also stays clear of parsing the headers that nobody asked for.
//!
//! Every pointer from librdkafka is checked before it is used; everything that is made here is owned by a guard that frees it
//! on every path. Nothing that points into librdkafka's memory leaves a function, except the header's bytes, which live as long
//! as the message they are borrowed from.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{self, NonNull};
use std::time::Duration;

use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use uuid::Uuid;

/// Longest header name that is looked up; ours are a few letters.
const HEADER_NAME_BYTES_MAX: usize = 63;

/// What Kafka says of one topic; `Err` is the topic's own error, such as that it does not exist.
pub(super) type Described = Result<Description, RDKafkaErrorCode>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) id: Uuid,
    pub(super) partitions: usize,
    pub(super) partitions_with_leader: usize,
    /// Of partition 0; partitions of one topic differ only while they are being reassigned.
    pub(super) replication_factor: usize,
}

/// A failure of the whole request.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct DescribeFailed {
    pub(super) code: RDKafkaErrorCode,
    message: String,
}

/// Frees on drop what a librdkafka constructor returned.
struct Owned<T> {
    ptr: NonNull<T>,
    free: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// # Safety
    /// `ptr` is null or owned by the caller, and `free` is the function that librdkafka documents for it.
    unsafe fn new(ptr: *mut T, free: unsafe extern "C" fn(*mut T)) -> Result<Owned<T>, DescribeFailed> {
        match NonNull::new(ptr) {
            Some(ptr) => Ok(Owned { ptr, free }),
            None => Err(failed(RDKafkaErrorCode::Fail, "librdkafka is out of memory")),
        }
    }

    fn ptr(&self) -> *mut T {
        self.ptr.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: owned by this guard since `new`, and freed nowhere else.
        unsafe { (self.free)(self.ptr.as_ptr()) }
    }
}

fn failed(code: RDKafkaErrorCode, message: impl Into<String>) -> DescribeFailed {
    DescribeFailed { code, message: message.into() }
}

/// Describes topics by name, in the order asked for. Blocks for `timeout` at most.
pub(super) fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    timeout: Duration,
) -> Result<Vec<Described>, DescribeFailed> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let owned: Vec<CString> = names
        .iter()
        .map(|name| CString::new(*name).map_err(|_| failed(RDKafkaErrorCode::InvalidTopic, "a topic name holds NUL")))
        .collect::<Result<_, _>>()?;
    let mut pointers: Vec<*const c_char> = owned.iter().map(|name| name.as_ptr()).collect();
    let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX).max(1);
    let rk = client.native_ptr();

    // SAFETY: `rk` is the live client behind `client`, which outlives this function. The names are NUL-terminated and copied
    // by `of_topic_names`; `pointers` has `pointers.len()` elements. Each constructor's result is handed to the guard with its
    // documented destructor.
    let (queue, options, topics) = unsafe {
        (
            Owned::new(sys::rd_kafka_queue_new(rk), sys::rd_kafka_queue_destroy)?,
            Owned::new(
                sys::rd_kafka_AdminOptions_new(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS),
                sys::rd_kafka_AdminOptions_destroy,
            )?,
            Owned::new(
                sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()),
                sys::rd_kafka_TopicCollection_destroy,
            )?,
        )
    };

    // SAFETY: all four pointers are live; the buffer for words is null with length 0, which librdkafka allows. The request
    // copies topics and options, and its reply goes to `queue`, which holds a reference to itself while a reply is due.
    let event = unsafe {
        sys::rd_kafka_AdminOptions_set_request_timeout(options.ptr(), timeout_ms, ptr::null_mut(), 0);
        sys::rd_kafka_DescribeTopics(rk, topics.ptr(), options.ptr(), queue.ptr());
        // Null at the time-out. librdkafka answers by itself within the request's timeout; the second on top is for its threads.
        sys::rd_kafka_queue_poll(queue.ptr(), timeout_ms.saturating_add(1000))
    };
    if event.is_null() {
        return Err(failed(RDKafkaErrorCode::OperationTimedOut, "no answer from Kafka"));
    }
    // SAFETY: not null, returned by `rd_kafka_queue_poll`, so ours to destroy.
    let event = unsafe { Owned::new(event, sys::rd_kafka_event_destroy)? };
    // SAFETY: the event lives until the end of this function and everything read from it is copied before that.
    unsafe { read_descriptions(event.ptr(), names.len()) }
}

/// # Safety
/// `event` is a live event.
unsafe fn read_descriptions(event: *mut sys::rd_kafka_event_t, asked: usize) -> Result<Vec<Described>, DescribeFailed> {
    // SAFETY: `event` is live by contract. The array has `count` elements and lives as long as the event, as do the
    // descriptions in it.
    unsafe {
        let code = sys::rd_kafka_event_error(event);
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(failed(code.into(), text(sys::rd_kafka_event_error_string(event))));
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Err(failed(RDKafkaErrorCode::Fail, "librdkafka answered with another event"));
        }
        let mut count = 0;
        let array = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if array.is_null() || count != asked {
            return Err(failed(RDKafkaErrorCode::Fail, format!("{count} topics described instead of {asked}")));
        }
        std::slice::from_raw_parts(array, count).iter().map(|topic| read_description(*topic)).collect()
    }
}

/// # Safety
/// `topic` is null or a live description.
unsafe fn read_description(topic: *const sys::rd_kafka_TopicDescription_t) -> Result<Described, DescribeFailed> {
    if topic.is_null() {
        return Err(failed(RDKafkaErrorCode::Fail, "librdkafka described a topic by nothing"));
    }
    // SAFETY: `topic` is live by contract and what it returns lives as long; `error_code` and the list functions of
    // replicas take what the description returned, checked for null where librdkafka dereferences it.
    unsafe {
        let error = sys::rd_kafka_TopicDescription_error(topic);
        if !error.is_null() {
            let code = sys::rd_kafka_error_code(error);
            if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Ok(Err(code.into()));
            }
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let id = if id.is_null() {
            Uuid::nil()
        } else {
            Uuid::from_u64_pair(
                sys::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned(),
                sys::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned(),
            )
        };
        let mut count = 0;
        let array = sys::rd_kafka_TopicDescription_partitions(topic, &mut count);
        let partitions = if array.is_null() { &[][..] } else { std::slice::from_raw_parts(array, count) };
        let mut description =
            Description { id, partitions: partitions.len(), partitions_with_leader: 0, replication_factor: 0 };
        for (index, partition) in partitions.iter().enumerate().filter(|(_, partition)| !partition.is_null()) {
            if !sys::rd_kafka_TopicPartitionInfo_leader(*partition).is_null() {
                description.partitions_with_leader += 1;
            }
            let mut replicas = 0;
            sys::rd_kafka_TopicPartitionInfo_replicas(*partition, &mut replicas);
            if index == 0 {
                description.replication_factor = replicas;
            }
        }
        Ok(Ok(description))
    }
}

/// # Safety
/// `ptr` is null or a NUL-terminated string that lives during the call.
unsafe fn text(ptr: *const c_char) -> String {
    if ptr.is_null() {
        return String::new();
    }
    // SAFETY: not null, NUL-terminated and alive by contract; copied before returning.
    unsafe { CStr::from_ptr(ptr) }.to_string_lossy().into_owned()
}

/// Every header whose name is UTF-8, in order; a value that is null is `None`.
pub(super) fn headers<'a>(message: &'a BorrowedMessage<'_>) -> Vec<(&'a str, Option<&'a [u8]>)> {
    let mut found = Vec::new();
    let mut headers = ptr::null_mut();
    // SAFETY: as in `header`. The name is a C string in the headers, which live as long as the message.
    unsafe {
        let code = sys::rd_kafka_message_headers(message.ptr(), &mut headers);
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
            return found;
        }
        for place in 0.. {
            let (mut name, mut value, mut bytes) = (ptr::null(), ptr::null(), 0);
            let code = sys::rd_kafka_header_get_all(headers, place, &mut name, &mut value, &mut bytes);
            if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
                break;
            }
            let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast::<u8>(), bytes));
            if let Ok(name) = CStr::from_ptr(name).to_str() {
                found.push((name, value));
            }
        }
    }
    found
}

/// The last header of that name; `None` also for a header whose value is null.
pub(super) fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a [u8]> {
    let mut terminated = [0u8; HEADER_NAME_BYTES_MAX + 1];
    if name.len() > HEADER_NAME_BYTES_MAX {
        return None;
    }
    terminated[..name.len()].copy_from_slice(name.as_bytes());
    let name = CStr::from_bytes_until_nul(&terminated).ok()?;
    let (mut headers, mut value, mut bytes) = (ptr::null_mut(), ptr::null(), 0);
    // SAFETY: the message is live and only this thread has it, as `Record` is not `Sync` and parsing headers is the one thing
    // that changes it. `headers` is owned by the message. `value` points into the headers, which live as long as the message
    // ('a), and has `bytes` bytes.
    unsafe {
        let code = sys::rd_kafka_message_headers(message.ptr(), &mut headers);
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
            return None;
        }
        let code = sys::rd_kafka_header_get_last(headers, name.as_ptr(), &mut value, &mut bytes);
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || value.is_null() {
            return None;
        }
        Some(std::slice::from_raw_parts(value.cast::<u8>(), bytes))
    }
}

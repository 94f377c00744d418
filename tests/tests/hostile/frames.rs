//! Bytes that are no messages, at every method; messages that are too large; connections that speak no gRPC.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use kiln_proto::v1::{self, push_log_request::Frame as Push};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{
    Code, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::server::{PATIENCE, Server, bearer, shell};

/// Sends bytes as they are.
#[derive(Debug, Default, Clone)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Every method of the protocol: its path, and whether only agents may call it.
fn methods() -> Vec<(String, bool)> {
    let set = prost_types::FileDescriptorSet::decode(kiln_proto::DESCRIPTORS).unwrap();
    let services = set.file.iter().flat_map(|file| &file.service);
    let of = |service: &prost_types::ServiceDescriptorProto| {
        let name = service.name().to_owned();
        service
            .method
            .iter()
            .map(|method| {
                let agents = matches!(method.name(), "Session" | "PushLog");
                (format!("/kiln.v1.{name}/{}", method.name()), agents)
            })
            .collect::<Vec<_>>()
    };
    services.flat_map(of).collect()
}

/// The end of a call with these bytes as its messages.
async fn call(server: &Server, secret: &str, path: &str, messages: &[&[u8]]) -> Option<Status> {
    let mut grpc = Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let messages: Vec<_> = messages.iter().map(|bytes| Bytes::copy_from_slice(bytes)).collect();
    let messages = tokio_stream::iter(messages);
    let called = grpc.streaming(bearer(secret, messages), path.parse().unwrap(), Raw);
    let end = async {
        let mut answers = called.await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    tokio::time::timeout(PATIENCE, end).await.expect("the call ends").err()
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused_by_every_method() {
    let server = Server::start().await;
    let agent = server.agent("worker").await;
    // A tag without an end, a length beyond the end, a wrong wire type, a group that never closes, deep nesting.
    let nested = [0x0a, 0x7f].repeat(60);
    let garbage: [&[u8]; 5] =
        [&[0xff; 11], &[0x0a, 0xff, 0xff, 0xff, 0x7f], &[0x0d, 1], &[0x0b; 40], &nested];
    for (path, agents) in methods() {
        let secret = if agents { &agent.secret } else { &server.admin };
        for bytes in garbage {
            let status = call(&server, secret, &path, &[bytes]).await;
            let status = status.unwrap_or_else(|| panic!("{path} took {bytes:x?}"));
            assert!(!status.message().contains("panic"), "{path}: {status:?}");
        }
    }
    server.is_well().await;
}

#[tokio::test]
async fn bytes_that_are_no_message_in_the_middle_of_a_log_are_no_end_of_it() {
    let server = Server::start().await;
    server.submit(vec![shell("a")]).await;
    let mut agent = server.agent("worker").await;
    let lease = agent.running().await.lease;
    let frame = |frame| v1::PushLogRequest { frame: Some(frame) }.encode_to_vec();
    let open = frame(Push::Open(v1::PushLogOpen { lease, stream: "main".into() }));
    let chunk = frame(Push::Chunk(v1::PushLogChunk { offset: 0, data: Bytes::from("held") }));
    let path = "/kiln.v1.LogService/PushLog";
    assert!(call(&server, &agent.secret, path, &[&open, &chunk]).await.is_none());
    let refused = call(&server, &agent.secret, path, &[&open, &chunk, &[0xff; 11]]).await;
    assert!(refused.unwrap().message().contains("decode"));
    server.is_well().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_before_it_is_held() {
    let server = Server::start().await;
    let huge = v1::JobSpec { script: "x".repeat(64 << 20), ..shell("huge") };
    let spec = Some(v1::BuildSpec { jobs: vec![huge], ..Default::default() });
    for _ in 0..4 {
        let request = v1::SubmitBuildRequest { spec: spec.clone(), ..Default::default() };
        let refused = server.builds().submit_build(server.request(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
        assert!(refused.message().contains("limit"), "{refused:?}");
    }
    server.is_well().await;
}

/// An HTTP/2 frame.
fn http2(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Headers of a call, without Huffman and without an index.
fn headers(path: &str, token: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    let mut literal = |name: &[u8], value: &str| {
        block.extend(name);
        let size = value.len();
        // A prefix of seven bits; what does not fit follows.
        match u8::try_from(size) {
            Ok(small @ 0..127) => block.push(small),
            _ => block.extend([127, u8::try_from(size - 127).unwrap()]),
        }
        block.extend(value.as_bytes());
    };
    literal(&[0x04], path);
    literal(&[0x01], "127.0.0.1");
    literal(&[0x0f, 0x10], "application/grpc");
    literal(&[0x0f, 0x08], &format!("Bearer {token}"));
    literal(&[0x00, 2, b't', b'e'], "trailers");
    block
}

/// Says these bytes, and reads until the server has nothing more to say.
async fn say(server: &Server, bytes: &[u8]) {
    let mut stream = TcpStream::connect(&server.address).await.unwrap();
    // The server may hang up in the middle: that is an answer.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = vec![];
    let read = stream.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_secs(10), read).await;
    assert!(answer.len() < 1 << 20, "an answer of {} bytes", answer.len());
}

#[tokio::test]
async fn connections_that_speak_no_grpc_or_stop_in_the_middle_cost_nothing() {
    let server = Server::start().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let begun = [&preface[..], &http2(4, 0, 0, &[])].concat();
    let path = "/kiln.v1.BuildService/SubmitBuild";
    let call = [&begun[..], &http2(1, 4, 1, &headers(path, &server.admin))].concat();
    // The message claims four gigabytes, or a hundred bytes, and ends after three.
    let claims = |size: u32| [&[0][..], &size.to_be_bytes(), b"abc"].concat();
    let attacks = [
        vec![0; 1 << 20],
        b"GET / HTTP/1.1\r\n".to_vec(),
        [&b"GET /healthz HTTP/1.1\r\nHost: "[..], "a".repeat(1 << 20).as_bytes()].concat(),
        b"POST /kiln.v1.BuildService/SubmitBuild HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
        preface.clone(),
        [&preface[..], &[0xff; 9]].concat(),
        [&begun[..], &http2(1, 4, 1, &[0xff; 200])].concat(),
        [&call[..], &http2(0, 1, 1, &claims(u32::MAX))].concat(),
        [&call[..], &http2(0, 1, 1, &claims(100))].concat(),
        [&call[..], &http2(0, 0, 1, &claims(100))].concat(),
        call.clone(),
    ];
    let all = attacks.iter().map(|bytes| say(&server, bytes));
    futures::future::join_all(all).await;
    // Many that only connect, and stay.
    let idle = (0..200).map(|_| TcpStream::connect(&server.address));
    let idle = futures::future::join_all(idle).await;
    assert_eq!(idle.iter().filter(|stream| stream.is_ok()).count(), 200);
    server.is_well().await;
}

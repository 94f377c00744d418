//! Blobs of the fake: it holds one.

use std::pin::Pin;

use futures::{Stream, stream};
use kiln_sdk::v1::{artifact_service_server::ArtifactService, put_artifact_request::Frame, *};
use sha2::{Digest, Sha256};
use tonic::{Request, Response, Status, Streaming};

use super::State;

const PIECE: usize = 100_000;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn held(state: &State) -> usize {
    state.seen.lock().unwrap().stored.len()
}

/// Takes pieces until the blob is whole or the script cuts.
async fn take(
    state: &State,
    frames: &mut Streaming<PutArtifactRequest>,
    size: usize,
) -> Result<PutArtifactResponse, Status> {
    let begin = held(state);
    while let Some(frame) = frames.message().await? {
        let Some(Frame::Data(data)) = frame.frame else { panic!("one opening only") };
        state.seen.lock().unwrap().stored.extend_from_slice(&data);
        let cut = state.script.cut_upload;
        if cut > 0 && held(state) - begin >= cut && held(state) < size {
            return Err(Status::unavailable("cut"));
        }
        if held(state) >= size {
            break;
        }
    }
    Ok(PutArtifactResponse { held: held(state) as i64, stored: held(state) == size })
}

#[tonic::async_trait]
impl ArtifactService for State {
    type PutArtifactStream = Answers<PutArtifactResponse>;
    type GetArtifactStream = Answers<GetArtifactResponse>;

    async fn put_artifact(
        &self,
        request: Request<Streaming<PutArtifactRequest>>,
    ) -> Result<Response<Self::PutArtifactStream>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.and_then(|frame| frame.frame);
        let Some(Frame::Open(open)) = first else { panic!("the opening is missing") };
        let (size, begin) = (usize::try_from(open.size).unwrap(), held(self));
        self.seen.lock().unwrap().offsets.push(begin);
        let first = PutArtifactResponse { held: begin as i64, stored: begin == size };
        let stored = first.stored;
        let state = self.clone();
        let rest = stream::once(async move { take(&state, &mut frames, size).await });
        let rest: Answers<PutArtifactResponse> =
            if stored { Box::pin(stream::empty()) } else { Box::pin(rest) };
        Ok(Response::new(Box::pin(futures::StreamExt::chain(stream::iter([Ok(first)]), rest))))
    }

    async fn get_artifact(
        &self,
        request: Request<GetArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        let offset = usize::try_from(request.into_inner().offset).unwrap();
        let mut seen = self.seen.lock().unwrap();
        seen.gotten.push(offset);
        let sha256 = format!("{:x}", Sha256::digest(&seen.stored));
        let cut = self.script.cut_download;
        let end = if cut == 0 { seen.stored.len() } else { seen.stored.len().min(offset + cut) };
        let mut answers: Vec<_> = seen.stored[offset..end]
            .chunks(PIECE)
            .map(|piece| {
                Ok(GetArtifactResponse { data: piece.to_vec().into(), ..Default::default() })
            })
            .collect();
        if let Some(Ok(first)) = answers.first_mut() {
            (first.size, first.sha256) = (seen.stored.len() as i64, sha256);
            if self.script.damage {
                let mut data = first.data.to_vec();
                data[0] ^= 1;
                first.data = data.into();
            }
        }
        if end < seen.stored.len() {
            answers.push(Err(Status::unavailable("cut")));
        }
        Ok(Response::new(Box::pin(stream::iter(answers))))
    }

    async fn list_artifacts(
        &self,
        _: Request<ListArtifactsRequest>,
    ) -> Result<Response<ListArtifactsResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

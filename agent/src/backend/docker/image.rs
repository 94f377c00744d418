//! The image of a job: there already, or fetched with its progress in the log.

use std::{collections::BTreeMap, time::Duration};

use bollard::{
    Docker, errors::Error, models::CreateImageInfo, models::ImageInspect,
    query_parameters::CreateImageOptions,
};
use futures::StreamExt;
use kiln_core::spec::PullPolicy;
use tokio::time::{Instant, timeout};

use super::{Config, end, engine_error, registry};
use crate::{backend::Failure, run::Run};

/// A registry that sends nothing for so long is not going to.
const SILENCE: Duration = Duration::from_mins(5);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Has the image on this machine when it returns.
pub(super) async fn ensure(
    docker: &Docker,
    config: &Config,
    run: &Run,
    image: &str,
    policy: PullPolicy,
) -> Result<ImageInspect, Failure> {
    let image = registry::with_tag(image);
    if policy != PullPolicy::Always {
        match docker.inspect_image(&image).await {
            Ok(found) => return Ok(found),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(error) => return Err(failure(&image, &error)),
        }
    }
    if policy == PullPolicy::Never {
        let message = format!("image {image} is not on the agent, and its pull policy is never");
        return Err(Failure::user(message));
    }
    tokio::select! {
        pulled = pull(docker, config, run, &image) => pulled?,
        () = run.cancel.cancelled() => return Err(Failure::user("ended while the image was pulled")),
    }
    docker.inspect_image(&image).await.map_err(|error| failure(&image, &error))
}

async fn pull(docker: &Docker, config: &Config, run: &Run, image: &str) -> Result<(), Failure> {
    let credentials = match &config.registry_auth {
        Some(file) => {
            registry::credentials(file, image).map_err(|error| Failure::infra(error.to_string()))?
        }
        None => None,
    };
    say(run, &format!("pulling {image}")).await?;
    let options =
        CreateImageOptions { from_image: Some(image.to_owned()), ..CreateImageOptions::default() };
    let mut stream = docker.create_image(Some(options), None, credentials);
    let mut progress = Progress::default();
    let mut said = Instant::now();
    loop {
        let next = timeout(SILENCE, stream.next()).await;
        let info = match next.map_err(|_| silent(image))? {
            Some(info) => info.map_err(|error| failure(image, &error))?,
            None => return Ok(()),
        };
        if let Some(line) = progress.take(&info) {
            say(run, &line).await?;
        } else if said.elapsed() >= PROGRESS_INTERVAL {
            said = Instant::now();
            say(run, &progress.line()).await?;
        }
    }
}

fn silent(image: &str) -> Failure {
    let seconds = SILENCE.as_secs();
    Failure::infra(format!("image {image}: the registry sent nothing for {seconds} s"))
}

async fn say(run: &Run, text: &str) -> Result<(), Failure> {
    run.say(text).await.map_err(|error| Failure::infra(format!("the log: {error}")))
}

/// A name that does not exist will not tomorrow; a registry that does not answer may.
fn failure(image: &str, error: &Error) -> Failure {
    let text = match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        Error::DockerStreamError { error } => error.clone(),
        other => return engine_error("the image", other),
    };
    let lower = text.to_lowercase();
    let is_wrong = [
        "manifest unknown",
        "not found: manifest",
        "repository does not exist",
        "pull access denied",
        "no matching manifest",
        "invalid reference",
        "name unknown",
        "repository name not known",
        "unauthorized",
        "requested access to the resource is denied",
        "no basic auth credentials",
    ];
    let message = format!("image {image}: {}", end(&text));
    if is_wrong.iter().any(|words| lower.contains(words)) {
        Failure::user(message)
    } else {
        Failure::infra(message)
    }
}

/// Layers on their way.
#[derive(Debug, Default)]
struct Progress {
    layers: BTreeMap<String, (i64, i64)>,
}

impl Progress {
    /// A line that is worth being said at once.
    fn take(&mut self, info: &CreateImageInfo) -> Option<String> {
        let status = info.status.as_deref().unwrap_or_default();
        if let (Some(layer), Some(detail)) = (&info.id, &info.progress_detail)
            && let (Some(current), Some(total)) = (detail.current, detail.total)
            && status == "Downloading"
        {
            self.layers.insert(layer.clone(), (current, total));
        }
        if let Some(layer) = info.id.as_ref().and_then(|layer| self.layers.get_mut(layer))
            && status == "Download complete"
        {
            layer.0 = layer.1;
        }
        ["Digest:", "Status:"]
            .iter()
            .any(|prefix| status.starts_with(prefix))
            .then(|| status.to_owned())
    }

    fn line(&self) -> String {
        let sum = |pick: fn(&(i64, i64)) -> i64| self.layers.values().map(pick).sum::<i64>() >> 20;
        let (done, all) = (sum(|layer| layer.0), sum(|layer| layer.1));
        format!("pulling: {done} of {all} MiB in {} layers", self.layers.len())
    }
}

#[cfg(test)]
mod tests {
    use kiln_core::outcome::FailureKind;

    use super::*;

    #[test]
    fn what_cannot_get_better_is_the_users_error() {
        let of = |status_code, message: &str| {
            let message = message.to_owned();
            failure("a:1", &Error::DockerResponseServerError { status_code, message }).kind
        };
        let user = [
            (404, "manifest for a:1 not found: manifest unknown: manifest unknown"),
            (
                404,
                "pull access denied for a, repository does not exist or may require 'docker login'",
            ),
            (400, "invalid reference format"),
            (500, "Get \"http://h/v2/a/manifests/1\": no basic auth credentials"),
        ];
        for (code, text) in user {
            assert_eq!(of(code, text), FailureKind::User, "{text}");
        }
        let infra = [
            (500, "Get \"https://h/v2/\": dial tcp: lookup h: no such host"),
            (500, "Get \"https://h/v2/\": dial tcp 10.0.0.1:443: connect: connection refused"),
            (500, "Get \"https://h/v2/\": net/http: TLS handshake timeout"),
            (500, "toomanyrequests: Too Many Requests"),
        ];
        for (code, text) in infra {
            assert_eq!(of(code, text), FailureKind::Infra, "{text}");
        }
    }
}

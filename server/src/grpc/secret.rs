//! SecretService. No method reads a value.

use kiln_core::secret::Secret;
use kiln_proto::v1;
use tonic::{Request, Response, Status};

use super::auth;
use crate::app::{App, Principal, ProjectRow, SecretRow};

/// The project of those who name none.
const DEFAULT: &str = "default";

/// See [`v1::secret_service_server::SecretService`].
#[derive(Debug, Clone)]
pub struct Secrets {
    app: App,
}

impl Secrets {
    pub fn new(app: App) -> Self {
        Self { app }
    }

    /// The project that is meant, where the caller may touch it.
    async fn project(&self, caller: &Principal, name: &str) -> Result<ProjectRow, Status> {
        let row = self.app.project(or_default(name)).await?;
        auth::within(caller, &row)?;
        Ok(row)
    }

    /// The same to be written to: the default one is made on demand, but not by a caller that is bound to another.
    async fn project_to_change(
        &self,
        caller: &Principal,
        name: &str,
    ) -> Result<ProjectRow, Status> {
        match auth::bound(caller) {
            None => Ok(self.app.project_or_default(or_default(name)).await?),
            Some(_) => self.project(caller, name).await,
        }
    }
}

fn or_default(name: &str) -> &str {
    if name.is_empty() { DEFAULT } else { name }
}

fn info(row: SecretRow, project: &ProjectRow) -> v1::SecretInfo {
    v1::SecretInfo {
        name: row.name,
        project: project.name.clone(),
        set_ms: row.set_at,
        set_by: row.set_by,
        key: row.key,
    }
}

#[tonic::async_trait]
impl v1::secret_service_server::SecretService for Secrets {
    async fn set_secret(
        &self,
        request: Request<v1::SetSecretRequest>,
    ) -> Result<Response<v1::SetSecretResponse>, Status> {
        let who = auth::caller(&request)?;
        let caller = who.principal.clone();
        let v1::SetSecretRequest { project, name, value } = request.into_inner();
        // Wiped when it is dropped.
        let secret = Secret { name, value };
        let project = self.project_to_change(&caller, &project).await?;
        let (Principal::Token { name: by, .. } | Principal::Agent { name: by, .. }) = caller;
        let set = self.app.by(&who).set_secret(&project, &secret.name, &secret.value, &by).await?;
        let (row, created) = set;
        let secret = Some(info(row, &project));
        Ok(Response::new(v1::SetSecretResponse { secret, created }))
    }

    async fn list_secrets(
        &self,
        request: Request<v1::ListSecretsRequest>,
    ) -> Result<Response<v1::ListSecretsResponse>, Status> {
        let caller = auth::principal(&request)?;
        let project = self.project(&caller, &request.get_ref().project).await?;
        let rows = self.app.secrets(project.id).await?.into_iter();
        let secrets = rows.map(|row| info(row, &project)).collect();
        Ok(Response::new(v1::ListSecretsResponse { secrets }))
    }

    async fn delete_secret(
        &self,
        request: Request<v1::DeleteSecretRequest>,
    ) -> Result<Response<v1::DeleteSecretResponse>, Status> {
        let who = auth::caller(&request)?;
        let v1::DeleteSecretRequest { project, name } = request.into_inner();
        let project = self.project(&who.principal, &project).await?;
        self.app.by(&who).delete_secret(&project, &name).await?;
        Ok(Response::new(v1::DeleteSecretResponse {}))
    }

    async fn reencrypt_secrets(
        &self,
        request: Request<v1::ReencryptSecretsRequest>,
    ) -> Result<Response<v1::ReencryptSecretsResponse>, Status> {
        let who = auth::caller(&request)?;
        let (count, key) = self.app.by(&who).reencrypt_secrets().await?;
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        Ok(Response::new(v1::ReencryptSecretsResponse { count, key }))
    }
}

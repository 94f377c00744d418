//! ProjectService.

use kiln_proto::{convert, v1};
use tonic::{Request, Response, Status};

use super::{auth, refuse, view};
use crate::app::App;

/// See [`v1::project_service_server::ProjectService`].
#[derive(Debug, Clone)]
pub struct Projects {
    app: App,
}

impl Projects {
    pub fn new(app: App) -> Self {
        Self { app }
    }
}

#[tonic::async_trait]
impl v1::project_service_server::ProjectService for Projects {
    async fn create_project(
        &self,
        request: Request<v1::CreateProjectRequest>,
    ) -> Result<Response<v1::CreateProjectResponse>, Status> {
        let app = self.app.by(&auth::caller(&request)?);
        let request = request.into_inner();
        let weight = convert::count("weight", request.weight).map_err(refuse)?;
        let weight = Some(weight).filter(|weight| *weight > 0);
        let max_running = convert::count("max_running", request.max_running).map_err(refuse)?;
        let row = app.create_project(&request.name, weight, max_running).await?;
        Ok(Response::new(v1::CreateProjectResponse { project: Some(view::project(row)) }))
    }

    async fn get_project(
        &self,
        request: Request<v1::GetProjectRequest>,
    ) -> Result<Response<v1::GetProjectResponse>, Status> {
        let caller = auth::principal(&request)?;
        let row = self.app.project(&request.get_ref().name).await?;
        auth::within(&caller, &row)?;
        Ok(Response::new(v1::GetProjectResponse { project: Some(view::project(row)) }))
    }

    async fn list_projects(
        &self,
        request: Request<v1::ListProjectsRequest>,
    ) -> Result<Response<v1::ListProjectsResponse>, Status> {
        let caller = auth::principal(&request)?;
        let rows = self.app.projects().await?.into_iter();
        let rows = rows.filter(|row| auth::within(&caller, row).is_ok());
        Ok(Response::new(v1::ListProjectsResponse { projects: rows.map(view::project).collect() }))
    }

    async fn update_project(
        &self,
        request: Request<v1::UpdateProjectRequest>,
    ) -> Result<Response<v1::UpdateProjectResponse>, Status> {
        let caller = auth::caller(&request)?;
        let v1::UpdateProjectRequest { name, weight, max_running, paused } = request.into_inner();
        let read = |field: &str, value: Option<i32>| {
            value.map(|value| convert::count(field, value)).transpose().map_err(refuse)
        };
        let (weight, max_running) = (read("weight", weight)?, read("max_running", max_running)?);
        auth::within(&caller.principal, &self.app.project(&name).await?)?;
        let row = self.app.by(&caller).update_project(&name, weight, max_running, paused).await?;
        Ok(Response::new(v1::UpdateProjectResponse { project: Some(view::project(row)) }))
    }
}

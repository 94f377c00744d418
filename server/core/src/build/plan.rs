//! From a submission to jobs: matrices are expanded, needs resolved, cycles refused.

use std::collections::{BTreeMap, BTreeSet};

use crate::spec::{BuildSpec, JobSpec, MAX_JOBS, Violation, validate};

/// A valid submission, expanded. Made by [`plan`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub title: String,
    pub priority: i32,
    pub annotations: BTreeMap<String, String>,
    /// In the order of the submission; needs point into this list.
    pub jobs: Vec<PlannedJob>,
}

/// One job of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedJob {
    /// The name in the submission with its matrix values: `test (linux, 3.11)`.
    pub name: String,
    pub needs: Vec<PlannedNeed>,
    /// What to run: one combination of the matrix in its environment, its source filled in.
    pub spec: JobSpec,
}

/// An edge of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedNeed {
    /// Index of the needed job.
    pub job: usize,
    /// Place its artifacts into the workspace.
    pub artifacts: bool,
}

/// Expands a submission, or says what is wrong with it.
pub fn plan(spec: BuildSpec) -> Result<Plan, Vec<Violation>> {
    let mut violations = validate(&spec);
    if !violations.is_empty() {
        return Err(violations);
    }
    let total: usize = spec.jobs.iter().map(combinations).fold(0, usize::saturating_add);
    if total > MAX_JOBS {
        let message = format!("the matrices make {total} jobs, at most {MAX_JOBS} are allowed");
        return Err(vec![Violation::new("spec.jobs", message)]);
    }
    check_graph(&spec.jobs, &mut violations);
    if !violations.is_empty() {
        return Err(violations);
    }

    let mut jobs = Vec::with_capacity(total);
    let mut ranges = BTreeMap::new();
    for job in &spec.jobs {
        let first = jobs.len();
        jobs.extend(expand(job, &spec));
        ranges.insert(job.name.as_str(), first..jobs.len());
    }
    for job in &mut jobs {
        for need in &job.spec.needs {
            let range = ranges.get(need.job.as_str()).cloned().unwrap_or_default();
            job.needs
                .extend(range.map(|index| PlannedNeed { job: index, artifacts: need.artifacts }));
        }
    }
    let edges: usize = jobs.iter().map(|job| job.needs.len()).sum();
    if edges > 10 * MAX_JOBS {
        let message =
            format!("the needs make {edges} edges, at most {} are allowed", 10 * MAX_JOBS);
        return Err(vec![Violation::new("spec.jobs", message)]);
    }
    Ok(Plan { title: spec.title, priority: spec.priority, annotations: spec.annotations, jobs })
}

fn combinations(job: &JobSpec) -> usize {
    job.matrix.values().map(Vec::len).fold(1, usize::saturating_mul)
}

fn expand(job: &JobSpec, build: &BuildSpec) -> Vec<PlannedJob> {
    let mut rows: Vec<Vec<(&String, &String)>> = vec![vec![]];
    for (key, values) in &job.matrix {
        rows = rows
            .iter()
            .flat_map(|row| {
                values.iter().map(move |value| [row.as_slice(), &[(key, value)]].concat())
            })
            .collect();
    }
    rows.into_iter().map(|row| one(job, build, &row)).collect()
}

fn one(job: &JobSpec, build: &BuildSpec, row: &[(&String, &String)]) -> PlannedJob {
    let mut spec = job.clone();
    spec.matrix.clear();
    spec.env.extend(row.iter().map(|&(key, value)| (key.clone(), value.clone())));
    spec.priority = job.priority + build.priority;
    if spec.source.is_none() && !spec.no_source {
        spec.source.clone_from(&build.source);
    }
    let values: Vec<&str> = row.iter().map(|(_, value)| value.as_str()).collect();
    let name = if values.is_empty() {
        job.name.clone()
    } else {
        format!("{} ({})", job.name, values.join(", "))
    };
    PlannedJob { name, needs: vec![], spec }
}

/// Names are unique, needs exist, there is no cycle (Kahn's algorithm; what is left over is on or behind one).
fn check_graph(jobs: &[JobSpec], violations: &mut Vec<Violation>) {
    let mut index = BTreeMap::new();
    for (at, job) in jobs.iter().enumerate() {
        if index.insert(job.name.as_str(), at).is_some() {
            violations.push(Violation::new(
                format!("spec.jobs[{at}].name"),
                format!("{:?} is taken by another job", job.name),
            ));
        }
    }
    let mut open = vec![0_usize; jobs.len()];
    let mut dependents = vec![vec![]; jobs.len()];
    for (at, job) in jobs.iter().enumerate() {
        let mut seen = BTreeSet::new();
        for (edge, need) in job.needs.iter().enumerate() {
            let field = format!("spec.jobs[{at}].needs[{edge}].job");
            match index.get(need.job.as_str()) {
                None => violations
                    .push(Violation::new(field, format!("there is no job {:?}", need.job))),
                Some(_) if !seen.insert(&need.job) => {
                    violations.push(Violation::new(field, "is named twice"));
                }
                Some(&needed) => {
                    dependents[needed].push(at);
                    open[at] += 1;
                }
            }
        }
    }
    if !violations.is_empty() {
        return;
    }
    let mut ready: Vec<usize> = (0..jobs.len()).filter(|&at| open[at] == 0).collect();
    while let Some(at) = ready.pop() {
        for &dependent in &dependents[at] {
            open[dependent] -= 1;
            if open[dependent] == 0 {
                ready.push(dependent);
            }
        }
    }
    if let Some(at) = open.iter().position(|&count| count > 0) {
        let names: Vec<_> = open
            .iter()
            .zip(jobs)
            .filter(|(count, _)| **count > 0)
            .map(|(_, job)| job.name.as_str())
            .take(10)
            .collect();
        let message = format!("the needs form a cycle among: {}", names.join(", "));
        violations.push(Violation::new(format!("spec.jobs[{at}].needs"), message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Need, Source};

    fn job(name: &str, needs: &[&str]) -> JobSpec {
        JobSpec {
            name: name.into(),
            backend: "shell".into(),
            script: "true".into(),
            needs: needs.iter().map(|&job| Need { job: job.into(), artifacts: false }).collect(),
            ..JobSpec::default()
        }
    }

    fn build(jobs: Vec<JobSpec>) -> BuildSpec {
        BuildSpec { jobs, ..BuildSpec::default() }
    }

    fn fields(spec: BuildSpec) -> Vec<String> {
        plan(spec).unwrap_err().into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn a_matrix_makes_one_job_for_each_combination() {
        let mut test = job("test", &["compile"]);
        test.matrix = [
            ("OS".into(), vec!["a".into(), "b".into()]),
            ("V".into(), vec!["1".into(), "2".into()]),
        ]
        .into();
        let last = job("last", &["test"]);
        let plan = plan(build(vec![job("compile", &[]), test, last])).unwrap();
        let names: Vec<_> = plan.jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(
            names,
            ["compile", "test (a, 1)", "test (a, 2)", "test (b, 1)", "test (b, 2)", "last"]
        );
        assert_eq!(plan.jobs[2].spec.env["V"], "2");
        assert_eq!(
            plan.jobs[5].needs.iter().map(|need| need.job).collect::<Vec<_>>(),
            [1, 2, 3, 4]
        );
    }

    #[test]
    fn jobs_inherit_the_source_unless_they_refuse_it() {
        let source = Source::Archive { sha256: "0".repeat(64), size: 1 };
        let mut bare = job("bare", &[]);
        bare.no_source = true;
        let spec = BuildSpec { source: Some(source.clone()), ..build(vec![job("a", &[]), bare]) };
        let plan = plan(spec).unwrap();
        assert_eq!(plan.jobs[0].spec.source, Some(source));
        assert_eq!(plan.jobs[1].spec.source, None);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        assert_eq!(fields(build(vec![])), ["spec.jobs"]);
        assert_eq!(fields(build(vec![job("a", &[]), job("a", &[])])), ["spec.jobs[1].name"]);
        assert_eq!(fields(build(vec![job("a", &["b"])])), ["spec.jobs[0].needs[0].job"]);
        assert_eq!(fields(build(vec![job("a", &["b"]), job("b", &["a"])])), ["spec.jobs[0].needs"]);
        assert_eq!(fields(build(vec![job("a", &["a"])])), ["spec.jobs[0].needs"]);
        let mut both = job("a", &[]);
        both.command = vec!["true".into()];
        assert_eq!(fields(build(vec![both])), ["spec.jobs[0].script"]);
        let mut escape = job("a", &[]);
        escape.artifacts = vec!["../x".into(), "/x".into(), "a/**".into()];
        assert_eq!(
            fields(build(vec![escape])),
            ["spec.jobs[0].artifacts[0]", "spec.jobs[0].artifacts[1]"]
        );
        let mut option = job("a", &[]);
        option.source = Some(Source::Git {
            url: "ext::sh -c id".into(),
            r#ref: "--upload-pack=x".into(),
            submodules: false,
        });
        assert_eq!(
            fields(build(vec![option])),
            ["spec.jobs[0].source.git.url", "spec.jobs[0].source.git.ref"]
        );
    }

    #[test]
    fn a_matrix_that_makes_too_many_jobs_is_refused_before_it_is_expanded() {
        let mut wide = job("wide", &[]);
        let values: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        wide.matrix =
            (b'A'..=b'Z').map(|key| (char::from(key).to_string(), values.clone())).collect();
        assert_eq!(fields(build(vec![wide])), ["spec.jobs"]);
    }

    #[test]
    fn ten_thousand_jobs_in_a_chain_are_planned() {
        let jobs = (0..10_000_usize)
            .map(|n| {
                job(
                    &format!("j{n}"),
                    &n.checked_sub(1)
                        .map(|n| format!("j{n}"))
                        .as_deref()
                        .into_iter()
                        .collect::<Vec<_>>(),
                )
            })
            .collect();
        assert_eq!(plan(build(jobs)).unwrap().jobs.len(), 10_000);
    }
}

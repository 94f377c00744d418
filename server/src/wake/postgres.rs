//! Between replicas, by LISTEN and NOTIFY.

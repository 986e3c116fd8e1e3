// Package server answers CRI: one RPC, or one close family, per file.
//
// A handler has one shape and fits on a screen: decode → translate → reserve and record → act through the engine, with
// undo → commit → reply. It decides order, undo, idempotency and routing (by runtime handler at creation, by the record
// afterwards). What a container engine does is behind package engine, what CRI words mean is in package translator, what
// is true is in package state; List, Status and events are answered from there and never call an engine.
//
// Errors keep the class of their source (github.com/containerd/errdefs) all the way up; one interceptor turns classes
// into gRPC codes.
//
// cmd/shim makes a Server with New, lets it Recover, and Serves it. Until Recover has returned every call but Version
// answers Unavailable.
package server

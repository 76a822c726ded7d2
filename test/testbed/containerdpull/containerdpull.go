// SPDX-License-Identifier: Apache-2.0

// Package containerdpull builds and runs the commands of hack/containerd-pull, which pull as the nodes do: with the
// code of containerd 1.7 and of 2.x.
package containerdpull

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// Names returns the names of the commands, one for each containerd line.
func Names() []string { return []string{"containerd-v1", "containerd-v2"} }

// Command is the path of a command that was built.
type Command string

// Build builds the command of that name into a directory.
func Build(ctx context.Context, name, dir string) (Command, error) {
	root, err := workspace.Root()
	if err != nil {
		return "", err
	}
	output := filepath.Join(dir, name)
	err = gobuild.Build(ctx, gobuild.Options{
		Dir:      filepath.Join(root, "hack", "containerd-pull"),
		Packages: []string{"./" + name},
		Output:   output,
	})
	return Command(output), err
}

// Options say what to pull. The zero value of each field but the first two is the command's default.
type Options struct {
	// Reference is "host/repository:tag" or "host/repository@sha256:<hex>".
	Reference string
	// Hosts is the directory with containerd's registry hosts, certs.d.
	Hosts string
	// Clients is the number of nodes that pull, each with connections and a store of its own. Default 1.
	Clients int
	// Stagger is the time over which the starts of the clients are spread evenly. Default 0: all at once.
	Stagger time.Duration
	// Platform is "os/architecture[/variant]". Default "linux/amd64".
	Platform string
	// Discard verifies the content but stores only manifests, in memory.
	Discard bool
	// ChunkSize is concurrent_layer_fetch_buffer of containerd 2.x: layers are requested in parts of as many bytes,
	// concurrently. The command for containerd 1.7 rejects it. Default 0: in one part.
	ChunkSize int
	// Timeout is the time after which clients that still pull fail. Default 10 minutes.
	Timeout time.Duration
	// Dir is where the content stores are while the command runs. Default $TMPDIR.
	Dir string
	// Log gets containerd's log, beside the error of Run. Default: discarded.
	Log io.Writer
	// Env has variables that are added to the environment, as "name=value".
	Env []string
}

// Report is what a command writes.
type Report struct {
	// Containerd is the version of containerd's code, for example "v2.4.2".
	Containerd string `json:"containerd"`
	// Reference and Platform are those of the command line.
	Reference string `json:"reference"`
	Platform  string `json:"platform"`
	// Seconds are those from the start of the first client to the end of the last.
	Seconds float64 `json:"seconds"`
	// Clients are in the order of their starts.
	Clients []Client `json:"clients"`
}

// Client is what one simulated node pulled.
type Client struct {
	// Digest is what the reference was resolved to, "sha256:<hex>": that of the index if it names one. Empty if the
	// reference could not be resolved.
	Digest string `json:"digest"`
	// Manifest is the digest of the platform's manifest; that of Digest where there is no index. Empty if it was not
	// fetched.
	Manifest string `json:"manifest"`
	// Blobs counts the different blobs that were fetched and verified: config and layers, without manifests.
	Blobs int `json:"blobs"`
	// Bytes are the bytes of Blobs.
	Bytes int64 `json:"bytes"`
	// Start is when the client began, in seconds after the first one.
	Start float64 `json:"start"`
	// Seconds are those that the client took, until it failed or had everything.
	Seconds float64 `json:"seconds"`
	// Error is why the client failed; empty if it has the image.
	Error string `json:"error"`
}

// Err returns the errors of the clients that failed.
func (r Report) Err() error {
	var errs []error
	for i, c := range r.Clients {
		if c.Error != "" {
			errs = append(errs, fmt.Errorf("client %d with containerd %s: %s", i, r.Containerd, c.Error))
		}
	}
	return errors.Join(errs...)
}

// Run runs the command. Clients that failed are in the report; the error is about a command that has none.
func (c Command) Run(ctx context.Context, o Options) (Report, error) {
	args := []string{"--hosts", o.Hosts, "--discard=" + strconv.FormatBool(o.Discard), "--stagger", o.Stagger.String()}
	if o.Clients != 0 {
		args = append(args, "--clients", strconv.Itoa(o.Clients))
	}
	if o.Platform != "" {
		args = append(args, "--platform", o.Platform)
	}
	if o.ChunkSize != 0 {
		args = append(args, "--chunk-size", strconv.Itoa(o.ChunkSize))
	}
	if o.Timeout != 0 {
		args = append(args, "--timeout", o.Timeout.String())
	}
	cmd := exec.CommandContext(ctx, string(c), append(args, o.Reference)...)
	// It removes its stores when it is asked to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), o.Env...)
	if o.Dir != "" {
		cmd.Env = append(cmd.Env, "TMPDIR="+o.Dir)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if o.Log != nil {
		cmd.Stderr = io.MultiWriter(&stderr, o.Log)
	}
	runErr := cmd.Run()
	var report Report
	decoder := json.NewDecoder(&stdout)
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&report)
	if failed := report.Err() != nil; err != nil || failed != (runErr != nil) {
		return Report{}, fmt.Errorf("%s: %w\n%s", cmd, errors.Join(runErr, err), bytes.TrimSpace(stderr.Bytes()))
	}
	return report, nil
}

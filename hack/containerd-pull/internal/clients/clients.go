// SPDX-License-Identifier: Apache-2.0

// Package clients contains the code that the commands for containerd 1.7 and 2.x share: flags, concurrent clients,
// report. Both commands use the same go.mod, so containerd 1.7 runs with newer dependencies here than in its releases.
package clients

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// MaxConcurrentDownloads is the number of concurrent downloads of one client: the default of max_concurrent_downloads
// in containerd's CRI plugin.
const MaxConcurrentDownloads = 3

// maxClients is the largest number of simulated nodes of one process. Each of them has up to MaxConcurrentDownloads
// open connections and files.
const maxClients = 1000

// Options describe the pull of one client.
type Options struct {
	// Reference is "host/repository:tag" or "host/repository@sha256:<hex>"; there are no default values for the host
	// or the repository prefix as in Docker.
	Reference string
	// Hosts is the directory with the hosts.toml files (config_path of containerd's CRI plugin), for example
	// /etc/containerd/certs.d.
	Hosts string
	// Platform is "os/architecture[/variant]".
	Platform string
	// Store is an existing directory for the client's content store. Empty: only manifests, in memory.
	Store string
	// Username and Password are sent to each host that requests credentials, like a pull secret. Empty: anonymous.
	Username, Password string
	// Until is the last step of the pull. Default: all steps.
	Until Step
	// ChunkSize is the size of the parts in which a layer is requested concurrently, in bytes. Default 0: one part.
	ChunkSize int
}

// Step is a step of a pull.
type Step string

// The steps after which a pull can end early. The name of the last step, which fetches the blobs, is the empty string.
const (
	// StepResolve resolves the reference and fetches no content.
	StepResolve Step = "resolve"
	// StepManifests fetches the index and the manifest.
	StepManifests Step = "manifests"
)

// Credentials returns Username and Password for each host. It is the field of this name in containerd's HostOptions,
// which containerd's CRI plugin also sets for anonymous pulls.
func (o Options) Credentials(_ string) (username, password string, err error) {
	return o.Username, o.Password, nil
}

// Pull pulls as one node and records the fetched content in image. It returns after all its goroutines have ended.
type Pull func(ctx context.Context, o Options, image *Image) error

// Main runs a command and returns its exit code: 0 if all clients have pulled the image, 1 if not, 2 if the command
// line is invalid. module is the path of containerd's Go module; the report contains its version. containerd logs to
// standard error.
func Main(module string, pull Pull) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	c, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if c.serve {
		if err := serve(ctx, os.Stdin, os.Stdout, version(module), pull); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	report, err := c.run(ctx, pull)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	report.Containerd = version(module)
	output := json.NewEncoder(os.Stdout)
	output.SetIndent("", "  ")
	if err := output.Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, client := range report.Clients {
		if client.Error != "" {
			return 1
		}
	}
	return 0
}

// command is a parsed command line.
type command struct {
	pull    Options // without Store
	clients int
	stagger time.Duration
	discard bool
	timeout time.Duration
	serve   bool
}

func parse(args []string, output io.Writer) (command, error) {
	var c command
	flags := flag.NewFlagSet(filepath.Base(os.Args[0]), flag.ContinueOnError)
	flags.SetOutput(output)
	flags.StringVar(&c.pull.Hosts, "hosts", "", "`directory` with a hosts.toml per registry, as in /etc/containerd/certs.d (required)")
	flags.StringVar(&c.pull.Platform, "platform", "linux/amd64", "`os/architecture[/variant]` to select from an index")
	flags.IntVar(&c.clients, "clients", 1, "`number` of simulated nodes, each with its own connections and content store")
	flags.DurationVar(&c.stagger, "stagger", 0, "`duration` over which the starts of the clients are evenly distributed")
	flags.IntVar(&c.pull.ChunkSize, "chunk-size", 0, "`bytes` of the parts in which layers are requested concurrently (concurrent_layer_fetch_buffer, containerd 2.x only)")
	flags.BoolVar(&c.discard, "discard", false, "verify all content, but store only manifests, in memory")
	flags.DurationVar(&c.timeout, "timeout", 10*time.Minute, "`duration` after which pulls that are still in progress fail")
	flags.BoolVar(&c.serve, "serve", false, "read requests for pulls as JSON from standard input until its end; excludes all other flags")
	flags.Usage = func() {
		fmt.Fprintf(output, "Usage: %[1]s --hosts DIR [flags] HOST/REPOSITORY:TAG|HOST/REPOSITORY@DIGEST\n       %[1]s --serve\n", flags.Name())
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	switch {
	case c.serve && (flags.NFlag() != 1 || flags.NArg() != 0):
		return c, errors.New("--serve excludes all other flags and arguments")
	case c.serve:
		return c, nil
	case flags.NArg() != 1:
		return c, fmt.Errorf("got %d references, must be exactly one", flags.NArg())
	case c.pull.Hosts == "":
		// Without hosts.toml files, containerd would contact public registries.
		return c, errors.New("--hosts is required")
	case c.clients < 1 || c.clients > maxClients:
		return c, fmt.Errorf("--clients is %d, must be 1 to %d", c.clients, maxClients)
	case c.pull.ChunkSize < 0:
		return c, fmt.Errorf("--chunk-size is %d, must not be negative", c.pull.ChunkSize)
	case c.stagger < 0:
		return c, fmt.Errorf("--stagger is %s, must not be negative", c.stagger)
	case c.timeout <= 0:
		return c, fmt.Errorf("--timeout is %s, must be positive", c.timeout)
	}
	if _, err := os.Stat(c.pull.Hosts); err != nil {
		return c, fmt.Errorf("--hosts: %w", err)
	}
	c.pull.Reference = flags.Arg(0)
	return c, nil
}

func (c command) run(ctx context.Context, pull Pull) (_ Report, err error) {
	var stores string
	if !c.discard {
		if stores, err = os.MkdirTemp("", "containerd-pull-"); err != nil {
			return Report{}, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(stores)) }()
	}
	options := make([]Options, c.clients)
	for i := range options {
		options[i] = c.pull
		if c.discard {
			continue
		}
		options[i].Store = filepath.Join(stores, strconv.Itoa(i))
		if err := os.Mkdir(options[i].Store, 0o700); err != nil {
			return Report{}, err
		}
	}
	report := Report{Reference: c.pull.Reference, Platform: c.pull.Platform, Clients: make([]Client, c.clients)}
	begin := time.Now()
	var clients sync.WaitGroup
	for i, o := range options {
		delay := time.Duration(float64(c.stagger) * float64(i) / float64(c.clients))
		clients.Go(func() { report.Clients[i] = run(ctx, begin, delay, o, pull) })
	}
	clients.Wait()
	report.Seconds = time.Since(begin).Seconds()
	return report, nil
}

// run pulls as one client, at the time begin+delay.
func run(ctx context.Context, begin time.Time, delay time.Duration, o Options, pull Pull) Client {
	timer := time.NewTimer(time.Until(begin.Add(delay)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return Client{Error: fmt.Sprintf("waiting for the start: %s", context.Cause(ctx))}
	}
	start := time.Now()
	var image Image
	err := pull(ctx, o, &image)
	client := image.client()
	client.Start, client.Seconds = start.Sub(begin).Seconds(), time.Since(start).Seconds()
	if err != nil {
		client.Error = err.Error()
	}
	return client
}

// version returns the version of a Go module in this binary, or "" if it is not found.
func version(module string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, dep := range info.Deps {
		if dep.Path == module {
			return dep.Version
		}
	}
	return ""
}

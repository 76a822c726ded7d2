package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/pflag"
)

// A kubeconfig of an API server that nobody runs: port 1 of this machine refuses connections.
const kubeconfig = `
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: c, context: {cluster: c}}]
current-context: c
`

func TestBadInvocations(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, flag, want string }{
		{"no such configuration", "--config=/nowhere/config.yaml", "opening the controller configuration: open /nowhere/config.yaml: no such file or directory"},
		{"log level", "--log-level=loud", "reading flags: invalid --log-level: loud"},
		{"heartbeat", "--heartbeat-renew-interval-seconds=0", "--heartbeat-renew-interval-seconds must be greater than 0"},
		{"webhook", "--disable-webhooks=typo", `reading flags: cannot disable unknown webhook "typo"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if err := execute(t, tc.flag); err == nil || err.Error() != tc.want {
				t.Errorf("got error %v, want %s", err, tc.want)
			}
		})
	}
}

// All that can be put together without an API server is put together, with the flags that the chart gives.
func TestStartGetsAsFarAsTheAPIServer(t *testing.T) {
	t.Parallel()
	err := execute(t, "--leader-election-namespace=n", "--heartbeat-namespace=n", "--max-concurrent-reconciles=5",
		"--ignore-operation-annotation=false", "--webhook-config-mode=service", "--webhook-config-namespace=n",
		"--webhook-config-server-port=10250", "--webhook-config-service-port=443", "--webhook-config-cert-dir="+t.TempDir(),
		"--metrics-bind-address=0", "--health-bind-address=127.0.0.1:0", "--gardener-version=v1.147.1", "--log-level=error", "--log-format=json")
	if err == nil || !strings.HasPrefix(err.Error(), "adding webhooks: ") || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got error %v, want a refused connection", err)
	}
}

// execute runs the subcommand controller against an API server that is not there.
func execute(t *testing.T, args ...string) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	o := newControllerOptions()
	flags := pflag.NewFlagSet("controller", pflag.ContinueOnError)
	o.addFlags(flags)
	if err := flags.Parse(append(args, "--kubeconfig="+path)); err != nil {
		t.Fatal(err)
	}
	if err := o.complete(); err != nil {
		return err
	}
	return o.run(t.Context())
}

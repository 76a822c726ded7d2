// SPDX-License-Identifier: Apache-2.0

package cacheserver

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/contract"
)

// debugPaths are the sources of the paths of the debug port.
type debugPaths struct {
	metrics prometheus.Gatherer
	// ready returns why this server cannot serve clients, independently of its upstream.
	ready    func() error
	upstream func(context.Context) contract.UpstreamState
	volume   func() volume.Health
	problems func() []store.Problem
	// pprof serves profiles on /debug/pprof/.
	pprof bool
}

// debugHandler serves the paths of the debug port, see package contract.
func debugHandler(p debugPaths) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+contract.HealthPath, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n") // an error means that the client left
	})
	mux.HandleFunc("GET "+contract.ReadyPath, func(w http.ResponseWriter, _ *http.Request) {
		if err := p.ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n") // an error means that the client left
	})
	mux.HandleFunc("GET "+contract.UpstreamPath, func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, p.upstream(r.Context()))
	})
	mux.HandleFunc("GET "+contract.VolumePath, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, volumeState(p.volume(), p.problems()))
	})
	mux.Handle("GET "+contract.MetricsPath, promhttp.HandlerFor(p.metrics, promhttp.HandlerOpts{}))
	if p.pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func writeJSON(w http.ResponseWriter, state any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(state) // an error means that the client left
}

// volumeReasons are the reasons of the states in the contract.
var volumeReasons = map[volume.State]contract.VolumeReason{
	volume.OK:       contract.ReasonUsable,
	volume.Full:     contract.ReasonVolumeFull,
	volume.ReadOnly: contract.ReasonNotWritable,
	volume.Failed:   contract.ReasonIOError,
	volume.Hung:     contract.ReasonNoResponse,
}

// volumeState returns the state and the problems of a volume in the form of the contract.
func volumeState(h volume.Health, problems []store.Problem) contract.VolumeState {
	var listed []contract.VolumeProblem
	for _, p := range problems {
		listed = append(listed, contract.VolumeProblem(p))
	}
	return contract.NewVolumeState(volumeReasons[h.State], h.Message, h.Since, listed)
}

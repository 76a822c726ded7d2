// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/registry-cache/extension/test/testbed/images"
)

// maxAdminBody bounds the body of an admin request, in bytes.
const maxAdminBody = 64 << 10

// shapingBody is Shaping in JSON: {"latency": "200ms", "bytesPerSecond": 5000000}.
type shapingBody struct {
	Latency        string `json:"latency,omitempty"`
	BytesPerSecond int64  `json:"bytesPerSecond,omitempty"`
}

// imageBody asks for a generated image under a reference.
type imageBody struct {
	Reference string `json:"reference"`
	images.Spec
}

// imageResult says what stands under the reference now.
type imageResult struct {
	Digest string `json:"digest"`
}

// AdminHandler returns the admin API, in JSON. Errors are plain text.
//
//	GET    /healthz            200
//	GET    /requests?since=ID  the request log after the entry with that ID; without since all of it
//	DELETE /requests           empties it
//	GET    /shaping            {"latency": "200ms", "bytesPerSecond": 5000000}
//	PUT    /shaping            the same; a missing field is no latency, or no limit
//	GET    /faults             [{"host": "quay.io", "kind": "blob", "action": "cut", "afterBytes": 1000}], see Fault
//	PUT    /faults             the same, in place of those that are there; [] ends all
//	PUT    /private            [{"host": "quay.io", "repository": "a/b", "username": "u", "password": "p"}], see Private;
//	                           in place of what is there, [] makes all repositories public
//	POST   /images             {"reference": "ghcr.io/a/b:v1", "seed": 1, "layerSizes": [1000]} makes an image or index,
//	                           see images.Spec
func (s *Server) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /requests", s.getRequests)
	mux.HandleFunc("DELETE /requests", func(w http.ResponseWriter, _ *http.Request) {
		s.ResetRequests()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /shaping", s.getShaping)
	mux.HandleFunc("PUT /shaping", s.putShaping)
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.faults.get()) })
	mux.HandleFunc("PUT /faults", putList(s.Break))
	mux.HandleFunc("PUT /private", putList(s.Protect))
	mux.HandleFunc("POST /images", s.postImage)
	return mux
}

func (s *Server) getRequests(w http.ResponseWriter, r *http.Request) {
	var since int64
	if value := r.URL.Query().Get("since"); value != "" {
		var err error
		if since, err = strconv.ParseInt(value, 10, 64); err != nil {
			http.Error(w, fmt.Sprintf("since: %q is not the ID of a request", value), http.StatusBadRequest)
			return
		}
	}
	writeJSON(w, http.StatusOK, s.log.since(since))
}

func (s *Server) getShaping(w http.ResponseWriter, _ *http.Request) {
	shaping := s.shaper.get()
	writeJSON(w, http.StatusOK, shapingBody{Latency: shaping.Latency.String(), BytesPerSecond: shaping.BytesPerSecond})
}

func (s *Server) putShaping(w http.ResponseWriter, r *http.Request) {
	var body shapingBody
	if !readJSON(w, r, &body) {
		return
	}
	shaping := Shaping{BytesPerSecond: body.BytesPerSecond}
	if body.Latency != "" {
		var err error
		if shaping.Latency, err = time.ParseDuration(body.Latency); err != nil {
			http.Error(w, fmt.Sprintf("latency: %q is not a duration such as 200ms", body.Latency), http.StatusBadRequest)
			return
		}
	}
	if err := s.Shape(shaping); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// putList hands the list in the body to set, whose error is the client's fault.
func putList[T any](set func(...T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var list []T
		if !readJSON(w, r, &list) {
			return
		}
		if list == nil {
			http.Error(w, "decoding body: it must be a list", http.StatusBadRequest)
			return
		}
		if err := set(list...); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *Server) postImage(w http.ResponseWriter, r *http.Request) {
	var body imageBody
	if !readJSON(w, r, &body) {
		return
	}
	if err := body.Validate(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if _, err := parseReference(body.Reference); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	image, err := images.Build(body.Spec)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if err := s.Push(r.Context(), body.Reference, image); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	digest, err := image.Digest()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, http.StatusCreated, imageResult{Digest: digest.String()})
}

// readJSON decodes the body strictly, or answers 400 and returns false.
func readJSON(w http.ResponseWriter, r *http.Request, into any) bool {
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		http.Error(w, "decoding body: "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		http.Error(w, "encoding answer: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // an error means that the client left
}

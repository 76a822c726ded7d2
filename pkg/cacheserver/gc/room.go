// SPDX-License-Identifier: Apache-2.0

package gc

// roomRequest requests the eviction of some bytes.
type roomRequest struct {
	bytes int64
	// done has the result of the eviction for this request: whether so many bytes were freed. Otherwise nothing is left that can
	// be freed. Its capacity is 1.
	done chan bool
}

func newRoomRequest(bytes int64) roomRequest { return roomRequest{bytes, make(chan bool, 1)} }

// waiters are the requests that an eviction has not fulfilled yet, in the order of their arrival.
type waiters []waiter

type waiter struct {
	roomRequest
	due int64 // fulfilled when this number of bytes was freed
}

// add adds a request after freed bytes were freed. It returns the number of bytes that must be freed to fulfil this
// request and all requests before it.
func (w *waiters) add(r roomRequest, freed int64) (due int64) {
	due = freed + r.bytes
	if n := len(*w); n > 0 {
		due = (*w)[n-1].due + r.bytes
	}
	*w = append(*w, waiter{r, due})
	return due
}

// complete ends all requests that are fulfilled when freed bytes were freed.
func (w *waiters) complete(freed int64) {
	for len(*w) > 0 && (*w)[0].due <= freed {
		(*w)[0].done <- true
		*w = (*w)[1:]
	}
}

// end ends all other requests, which cannot be fulfilled.
func (w *waiters) end() {
	for _, r := range *w {
		r.done <- false
	}
	*w = nil
}
